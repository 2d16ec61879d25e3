#include "model/pretokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/error.h"
#include "model/tokenizer_utf8.h"

namespace lacuna {
namespace {

constexpr std::size_t kJitStackStart = 64 << 10;
constexpr std::size_t kJitStackMax = 64 << 20;

std::string pcre2_message(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

struct Free {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};

/// What a thread needs to run any pattern: room for one pair of offsets and a stack for the compiled code.
struct Workspace {
  std::unique_ptr<pcre2_jit_stack, Free> stack{pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr)};
  std::unique_ptr<pcre2_match_context, Free> context{pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_match_data, Free> data{pcre2_match_data_create(1, nullptr)};
  Workspace() {
    if (!stack || !context || !data) throw_resource("regular expressions: out of memory");
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
};

Workspace& workspace() {
  thread_local Workspace w;
  return w;
}

}  // namespace

struct Regex::Compiled {
  std::unique_ptr<pcre2_code, Free> code;
  bool jit = false;
  std::string where;
};

Regex::Regex(std::string_view oniguruma_pattern, const std::string& where) : compiled_(new Compiled) {
  const std::string pattern = pcre2_pattern(oniguruma_pattern, where);
  const std::unique_ptr<pcre2_compile_context, Free> context(pcre2_compile_context_create(nullptr));
  if (!context) throw_resource("regular expressions: out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // Oniguruma's ^ and $ match at every line; groups are not captured: only the whole match matters.
  compiled_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_AUTO_CAPTURE, &error,
                                      &offset, context.get()));
  if (!compiled_->code) {
    throw_usage("{}: regular expression '{}' does not compile: {}", where, oniguruma_pattern,
                pcre2_message(error));
  }
  // Without JIT (an unusual platform) the interpreter gives the same matches.
  compiled_->jit = pcre2_jit_compile(compiled_->code.get(), PCRE2_JIT_COMPLETE) == 0;
  compiled_->where = where;
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

bool Regex::next(std::string_view text, Cursor& cursor) const {
  Workspace& w = workspace();
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto match = compiled_->jit ? &pcre2_jit_match : &pcre2_match;
  while (cursor.search <= text.size()) {
    const int rc = match(compiled_->code.get(), subject, text.size(), cursor.search, PCRE2_NO_UTF_CHECK,
                         w.data.get(), w.context.get());
    if (rc == PCRE2_ERROR_NOMATCH) return false;
    if (rc < 0) {
      throw_usage("{}: the regular expression fails on this text of {} bytes: {}", compiled_->where,
                  text.size(), pcre2_message(rc));
    }
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(w.data.get());
    const std::size_t begin = offsets[0], end = offsets[1];
    if (begin == end && cursor.any && end == cursor.end) {
      cursor.search += end < text.size() ? utf8::at(text, cursor.search).length : 1;
      continue;
    }
    cursor.begin = begin;
    cursor.end = cursor.search = end;
    cursor.any = true;
    return true;
  }
  return false;
}

}  // namespace lacuna
