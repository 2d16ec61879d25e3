#include "sweeps/document.h"

#include <yaml-cpp/yaml.h>
#include <algorithm>

#include <charconv>
#include <cmath>
#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/text.h"

namespace lacuna {

namespace {

constexpr int kMaxValues = 1'000'000;
constexpr int kMaxIncludeDepth = 8;
constexpr int kMaxNesting = 100;

/// YAML 1.2 core schema for plain scalars. JSON has no inf and nan, and no sweep needs them: they stay text.
Json plain_scalar(const std::string& text) {
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL") return nullptr;
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  const char* begin = text.data() + (text[0] == '+' ? 1 : 0);
  const char* end = text.data() + text.size();
  std::int64_t integer = 0;
  if (const auto [at, status] = std::from_chars(begin, end, integer); status == std::errc() && at == end)
    return integer;
  std::uint64_t large = 0;
  if (const auto [at, status] = std::from_chars(begin, end, large); status == std::errc() && at == end)
    return large;
  double number = 0;
  const bool numeric = text.find_first_not_of("0123456789+-.eE") == std::string::npos;
  if (const auto [at, status] = std::from_chars(begin, end, number);
      numeric && status == std::errc() && at == end && std::isfinite(number)) {
    return number;
  }
  return text;
}

class Converter {
 public:
  Converter(const std::string& file, std::map<std::string, Mark, std::less<>>& marks)
      : file_(file), marks_(marks) {}

  Json convert(const YAML::Node& node, const std::string& path, int depth = 0) {
    LACUNA_REQUIRE(++values_ <= kMaxValues, "{}: more than {} values (aliases included)", file_, kMaxValues);
    LACUNA_REQUIRE(depth <= kMaxNesting, "{}: nested deeper than {} levels", place(node), kMaxNesting);
    marks_[path] = mark(node);
    switch (node.Type()) {
      case YAML::NodeType::Scalar:
        return node.Tag() == "!" || node.Tag() == "tag:yaml.org,2002:str" ? Json(node.Scalar())
                                                                          : plain_scalar(node.Scalar());
      case YAML::NodeType::Sequence: {
        Json list = Json::array();
        std::size_t i = 0;
        for (const auto& item : node)
          list.push_back(convert(item, join_path(path, std::to_string(i++)), depth + 1));
        return list;
      }
      case YAML::NodeType::Map: {
        Json object = Json::object();
        for (const auto& entry : node) {
          LACUNA_REQUIRE(entry.first.IsScalar(), "{}: a key must be a plain text", place(entry.first));
          const std::string key = entry.first.Scalar();
          LACUNA_REQUIRE(!object.contains(key), "{}: '{}' is given twice", place(entry.first), key);
          const std::string inner = join_path(path, key);
          object[key] = convert(entry.second, inner, depth + 1);
          marks_[inner] = mark(entry.first);  // the key is what a reader looks for
        }
        return object;
      }
      default:
        return nullptr;
    }
  }

 private:
  Mark mark(const YAML::Node& node) const {
    const YAML::Mark at = node.Mark();
    return at.is_null() ? Mark{file_, 1, 1} : Mark{file_, at.line + 1, at.column + 1};
  }
  std::string place(const YAML::Node& node) const {
    const Mark at = mark(node);
    return fmt::format("{}:{}:{}", at.file, at.line, at.column);
  }

  const std::string& file_;
  std::map<std::string, Mark, std::less<>>& marks_;
  int values_ = 0;
};

Json override_value(const std::string& text, const std::string& where) {
  if (!text.empty() && (text[0] == '[' || text[0] == '{')) return Document::parse(text, where).root();
  const auto parts = split(text, ',');
  if (parts.size() == 1) return plain_scalar(text);
  Json list = Json::array();
  for (const auto& part : parts) list.push_back(plain_scalar(std::string(trim(part))));
  return list;
}

/// The index that `key` names in a list: a number, or the `name` of an entry.
std::size_t list_index(const Json& list, const std::string& key, const std::string& where) {
  std::size_t index = 0;
  const auto [end, status] = std::from_chars(key.data(), key.data() + key.size(), index);
  if (status == std::errc() && end == key.data() + key.size()) {
    LACUNA_REQUIRE(index < list.size(), "{}: there is no entry {}; the list has {}", where, index,
                   list.size());
    return index;
  }
  std::vector<std::string> names;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const auto& item = list[i];
    if (item.is_string())
      names.push_back(item.get<std::string>());
    else if (item.is_object() && item.contains("name") && item["name"].is_string())
      names.push_back(item["name"].get<std::string>());
    else
      continue;
    if (names.back() == key) return i;
  }
  throw_usage("{}: {}", where, unknown_name_message("entry", key, names));
}

}  // namespace

std::string join_path(std::string_view path, std::string_view key) {
  return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
}

Document Document::parse(std::string_view text, const std::string& file) {
  Document document;
  if (const auto bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(bad), '\n');
    throw_usage("{}:{}: byte {} is not valid UTF-8; save the file as UTF-8", file, line, bad);
  }
  try {
    const YAML::Node node = YAML::Load(std::string(text));
    document.root_ = Converter(file, document.marks_).convert(node, "");
  } catch (const YAML::Exception& e) {
    throw_usage("{}:{}:{}: not valid YAML: {}", file, e.mark.line + 1, e.mark.column + 1, e.msg);
  }
  return document;
}

Document Document::load(const std::string& path) { return load(path, 0); }

Document Document::load(const std::string& path, int depth) {
  Document document = parse(read_file(path), path);
  if (document.root_.is_null()) document.root_ = Json::object();
  LACUNA_REQUIRE(document.root_.is_object(), "{}: expected settings as name: value", path);
  if (!document.root_.contains("include")) return document;

  const std::string where = document.where("include");
  LACUNA_REQUIRE(depth < kMaxIncludeDepth, "{}: includes are nested deeper than {} (a circle?)", where,
                 kMaxIncludeDepth);
  const Json include = document.root_["include"];
  document.root_.erase("include");
  document.erase_marks("include");
  Document merged;
  for (const auto& item : include.is_array() ? include : Json::array({include})) {
    LACUNA_REQUIRE(item.is_string(), "{}: include: expected a file name or a list of them", where);
    auto file = std::filesystem::path(item.get<std::string>());
    if (file.is_relative()) file = std::filesystem::path(path).parent_path() / file;
    LACUNA_REQUIRE(std::filesystem::exists(file), "{}: include: {} does not exist", where,
                   file.lexically_normal().string());
    merged.merge(load(file.lexically_normal().string(), depth + 1));
  }
  merged.merge(std::move(document));
  return merged;
}

void Document::erase_marks(const std::string& path) {
  for (auto it = marks_.lower_bound(path); it != marks_.end() && it->first.starts_with(path);) {
    const bool inside = it->first.size() == path.size() || it->first[path.size()] == '.';
    it = inside ? marks_.erase(it) : std::next(it);
  }
}

void Document::merge(Document&& over) {
  const auto merge_value = [&](auto&& self, Json& target, Json& source, const std::string& path) -> void {
    if (target.is_object() && source.is_object()) {
      for (auto& [key, value] : source.items()) {
        const std::string inner = join_path(path, key);
        if (target.contains(key))
          self(self, target[key], value, inner);
        else
          target[key] = std::move(value);
      }
    } else {
      erase_marks(path);
      target = std::move(source);
    }
  };
  merge_value(merge_value, root_, over.root_, "");
  for (auto& [path, mark] : over.marks_) marks_[path] = std::move(mark);
}

void Document::apply_override(const std::string& text) {
  const std::string where = fmt::format("command line '{}'", text);
  const auto equals = text.find('=');
  LACUNA_REQUIRE(equals != std::string::npos && equals > 0, "{}: expected key=value, for instance samples=10",
                 where);
  Json* at = &root_;
  std::string path;
  for (const auto& key : split(text.substr(0, equals), '.')) {
    LACUNA_REQUIRE(!key.empty(), "{}: empty name between dots", where);
    if (at->is_array()) {
      const std::size_t index = list_index(*at, key, where);
      at = &(*at)[index];
      path = join_path(path, std::to_string(index));
    } else {
      if (at->is_null()) *at = Json::object();
      LACUNA_REQUIRE(at->is_object(), "{}: '{}' is a plain value, it has no '{}'", where, path, key);
      at = &(*at)[key];
      path = join_path(path, key);
    }
  }
  *at = override_value(text.substr(equals + 1), where);
  erase_marks(path);
  marks_[path] = Mark{where, 0, 0};
}

const Mark* Document::find_mark(std::string_view path) const {
  while (true) {
    if (const auto it = marks_.find(path); it != marks_.end()) return &it->second;
    if (path.empty()) return nullptr;
    const auto dot = path.rfind('.');
    path = dot == std::string_view::npos ? std::string_view() : path.substr(0, dot);
  }
}

std::string Document::where(std::string_view path) const {
  const Mark* mark = find_mark(path);
  if (mark == nullptr) return "sweep";
  return mark->line == 0 ? mark->file : fmt::format("{}:{}:{}", mark->file, mark->line, mark->column);
}

std::string Document::file_of(std::string_view path) const {
  const Mark* mark = find_mark(path);
  return mark == nullptr || mark->line == 0 ? std::string() : mark->file;
}

}  // namespace lacuna
