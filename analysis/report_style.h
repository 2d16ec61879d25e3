// The style sheet and the script of report.html.
#pragma once

namespace lacuna {

inline constexpr const char* kReportStyle = R"(
:root{color-scheme:light;--ink:#1c2430;--soft:#5b6675;--line:#dfe4ea;--paper:#fff;--wash:#f5f7fa;--accent:#0b5394;--warn:#8a3b00}
*{box-sizing:border-box}
body{margin:0;background:var(--wash);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main,header,nav{max-width:1180px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 4px}
h2{font-size:1.3rem;line-height:1.3;margin:44px 0 12px}
h3{font-size:1.05rem;line-height:1.35;margin:0 0 6px;overflow-wrap:anywhere}
p{margin:0 0 10px;overflow-wrap:anywhere}
.soft{color:var(--soft)}
nav{padding-top:10px;padding-bottom:4px}
nav a{display:inline-block;margin:0 14px 6px 0;color:var(--accent)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:14px}
.card,.figure,.box{background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:14px 16px}
.card .topic{font-size:.78rem;letter-spacing:.04em;text-transform:uppercase;color:var(--soft)}
.card p{font-size:.9rem;color:var(--soft);margin:6px 0 0}
.box.warn{border-left:5px solid #d55e00;margin:16px 0}
.box.warn h3{color:var(--warn)}
ul{margin:6px 0;padding-left:20px}
li{margin:3px 0;overflow-wrap:anywhere}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:14px;margin-top:12px}
.figure{margin:0;padding:10px}
.figure img{display:block;width:100%;max-width:620px;height:auto;margin:0 auto}
.figure figcaption{font-size:.8rem;color:var(--soft);text-align:right}
.figure a{color:var(--accent)}
details{background:var(--paper);border:1px solid var(--line);border-radius:8px;margin:10px 0}
summary{cursor:pointer;padding:10px 16px;font-weight:600}
summary .soft{font-weight:400}
.scroll{overflow:auto;max-height:70vh;border-top:1px solid var(--line)}
table{border-collapse:collapse;font-size:.84rem;width:100%}
th,td{padding:5px 10px;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap;max-width:26em;overflow:hidden;text-overflow:ellipsis}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
thead th{position:sticky;top:0;background:#eef2f6;cursor:pointer;user-select:none}
th[aria-sort=ascending]::after{content:" \25B2"}
th[aria-sort=descending]::after{content:" \25BC"}
th .u{display:block;font-weight:400;color:var(--soft);font-size:.9em}
dl{display:grid;grid-template-columns:minmax(110px,max-content) minmax(0,1fr);gap:4px 16px;font-size:.86rem;margin:0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere;white-space:pre-wrap;max-height:16em;overflow-y:auto}
footer{max-width:1180px;margin:40px auto;padding:0 20px;color:var(--soft);font-size:.85rem}
@media(max-width:600px){main,header,nav,footer{padding-left:12px;padding-right:12px}h1{font-size:1.4rem}dl{grid-template-columns:minmax(0,1fr)}dt{margin-top:6px}}
@media print{nav{display:none}.scroll{max-height:none}}
)";

// Tables sort on a click or Enter; without scripts they stay in their order. Empty numbers go last either
// way.
inline constexpr const char* kReportScript = R"(
document.querySelectorAll('table').forEach(function(table){
  table.querySelectorAll('thead th').forEach(function(head,column){
    head.tabIndex=0;
    function sort(){
      var up=head.getAttribute('aria-sort')!=='ascending';
      table.querySelectorAll('th').forEach(function(h){h.removeAttribute('aria-sort')});
      head.setAttribute('aria-sort',up?'ascending':'descending');
      var body=table.tBodies[0],numeric=head.classList.contains('n');
      Array.from(body.rows).map(function(row){
        var cell=row.cells[column],text=cell.textContent;
        return {row:row,value:numeric?(text===''?NaN:parseFloat(cell.getAttribute('data-v'))):text};
      }).sort(function(a,b){
        if(numeric){
          if(isNaN(a.value))return isNaN(b.value)?0:1;
          if(isNaN(b.value))return -1;
          return up?a.value-b.value:b.value-a.value;
        }
        var order=a.value.localeCompare(b.value,undefined,{numeric:true});
        return up?order:-order;
      }).forEach(function(entry){body.appendChild(entry.row)});
    }
    head.addEventListener('click',sort);
    head.addEventListener('keydown',function(event){if(event.key==='Enter'||event.key===' '){event.preventDefault();sort()}});
  });
});
)";

}  // namespace lacuna
