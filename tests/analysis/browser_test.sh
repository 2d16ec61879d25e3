#!/bin/bash
# The report in a real browser without a network: every image must load. $1: make_synthetic_results. Skipped without
# Chromium or gnuplot.
set -u
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || { echo "skipped: no Chromium"; exit 77; }
command -v gnuplot >/dev/null || { echo "skipped: no gnuplot"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$1" "$work/sweep" hostile >/dev/null && "$LACUNA_BIN" report "$work/sweep" >/dev/null 2>&1 || { echo "FAILED: no report"; exit 1; }
# The page's own policy lets this probe run and nothing be fetched.
cat >>"$work/sweep/report.html" <<'PROBE'
<script>addEventListener('load',function(){var a=Array.from(document.images);
document.body.setAttribute('data-probe','images '+a.length+' loaded '+a.filter(function(i){return i.complete&&i.naturalWidth>0}).length+
' wide '+(document.documentElement.scrollWidth>innerWidth)+' alerts '+(window.alerted||0))})</script>
PROBE
for width in 1366 390; do
  dom=$(timeout 100 "$browser" --headless --no-sandbox --disable-gpu --user-data-dir="$work/profile" --proxy-server=127.0.0.1:9 \
    --window-size=$width,2000 --virtual-time-budget=5000 --dump-dom "file://$work/sweep/report.html" 2>/dev/null)
  probe=$(grep -o 'data-probe="[^"]*"' <<<"$dom" | head -1)
  read -r _ images _ loaded _ wide _ < <(tr -d '"' <<<"${probe#data-probe=}")
  echo "$width px: $probe"
  [ "${images:-0}" -gt 10 ] && [ "$images" = "$loaded" ] && [ "$wide" = false ] || { echo "FAILED at $width px"; exit 1; }
done
