#include "tasks/draft.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "core/error.h"

namespace lacuna {

namespace {

struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

std::vector<TokenId> common_prefix(const std::vector<TokenId>& a, const std::vector<TokenId>& b) {
  const auto end = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first;
  return {a.begin(), end};
}

using Sections = std::vector<std::pair<std::string, std::int64_t>>;

/// Tokens per section of a message of `total` tokens. Where the tokenizer joins pieces, the sections around
/// the context are tokenised as a whole, and the context takes the rest.
Sections count_sections(const Draft& draft, const Tokenizer& tokenizer, std::int64_t total) {
  Sections sections = draft.sections();
  if (draft.placed() == total) return sections;
  std::int64_t rest = total;
  for (std::size_t i = 0; i < sections.size(); ++i) {
    if (sections[i].first == "context") continue;
    sections[i].second = static_cast<std::int64_t>(tokenizer.encode(draft.section_text(i)).size());
    rest -= sections[i].second;
  }
  for (auto& [name, tokens] : sections) {
    if (name == "context") tokens = rest;
  }
  return sections;
}

}  // namespace

struct PieceCache::Impl {
  explicit Impl(const Tokenizer& t) : tokenizer(&t) {}
  const Tokenizer* tokenizer;
  std::unordered_map<std::string, std::vector<TokenId>, TextHash, std::equal_to<>> pieces;
  struct Frame {
    std::vector<TokenId> prefix, suffix;
  };
  std::map<ChatFormat, Frame> frames;

  /// The frame's ids are what two prompts of different messages share at both ends.
  const Frame& frame(ChatFormat chat) {
    const auto it = frames.find(chat);
    if (it != frames.end()) return it->second;
    auto a = encode_chat(*tokenizer, chat, "A"), b = encode_chat(*tokenizer, chat, "7");
    Frame frame;
    frame.prefix = common_prefix(a, b);
    std::ranges::reverse(a);
    std::ranges::reverse(b);
    frame.suffix = common_prefix(a, b);
    std::ranges::reverse(frame.suffix);
    return frames[chat] = std::move(frame);
  }
};

PieceCache::PieceCache(const Tokenizer& tokenizer) : impl_(std::make_unique<Impl>(tokenizer)) {}
PieceCache::~PieceCache() = default;
PieceCache::PieceCache(PieceCache&&) noexcept = default;

const Tokenizer& PieceCache::tokenizer() const { return *impl_->tokenizer; }

std::span<const TokenId> PieceCache::ids(std::string_view piece) {
  const auto it = impl_->pieces.find(piece);
  if (it != impl_->pieces.end()) return it->second;
  constexpr std::size_t kMaxPieces = 200'000;  // some 30 MB; wording, words and numbers stay far below
  if (impl_->pieces.size() >= kMaxPieces) impl_->pieces.clear();
  return impl_->pieces.emplace(piece, impl_->tokenizer->encode(piece)).first->second;
}

Draft& Draft::add(std::string_view piece) {
  const auto ids = cache_.ids(piece);
  text_ += piece;
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  return *this;
}

Draft& Draft::add_fresh(std::string_view piece) {
  const auto ids = cache_.tokenizer().encode(piece);
  text_ += piece;
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  return *this;
}

Draft& Draft::add_number(std::uint64_t number) { return add(fmt::format_int(number).c_str()); }

Block Draft::take() {
  const Block block{text_taken_, text_.size(), id_taken_, ids_.size()};
  text_taken_ = text_.size();
  id_taken_ = ids_.size();
  return block;
}

void Draft::section(std::string name) {
  sections_.emplace_back(std::move(name), 0);
  section_begins_.push_back(message_.size());
}

std::string_view Draft::section_text(std::size_t section) const {
  const std::size_t begin = section_begins_[section];
  const std::size_t end =
      section + 1 < section_begins_.size() ? section_begins_[section + 1] : message_.size();
  return std::string_view(message_).substr(begin, end - begin);
}

void Draft::place(const Block& block) {
  message_.append(text(block));
  ids_out_.insert(ids_out_.end(), ids_.begin() + static_cast<std::ptrdiff_t>(block.id_begin),
                  ids_.begin() + static_cast<std::ptrdiff_t>(block.id_end));
  LACUNA_CHECK(!sections_.empty(), "a block was placed before the first section");
  sections_.back().second += block.tokens();
}

void Draft::place(std::span<const Block> blocks) {
  for (const auto& block : blocks) place(block);
}

Sample fit_sample(const std::string& who, const SampleRequest& request,
                  const std::function<void(Draft&)>& compose) {
  LACUNA_CHECK(request.tokenizer != nullptr, "a sample needs a tokenizer");
  LACUNA_REQUIRE(request.target_tokens > 0, "{}: the length must be positive, found {}", who,
                 request.target_tokens);
  std::unique_ptr<PieceCache> own;
  PieceCache* cache = request.cache;
  if (cache == nullptr) {
    own = std::make_unique<PieceCache>(*request.tokenizer);
    cache = own.get();
  }
  LACUNA_CHECK(&cache->tokenizer() == request.tokenizer, "the piece cache belongs to another tokenizer");
  const auto& frame = cache->impl().frame(request.chat);
  const auto frame_tokens = static_cast<std::int64_t>(frame.prefix.size() + frame.suffix.size());
  const std::int64_t target = request.target_tokens;
  const std::int64_t full = target - frame_tokens;
  LACUNA_REQUIRE(full > 0, "{}: {} tokens do not even hold the chat frame of {} tokens", who, target,
                 frame_tokens);

  std::int64_t budget = full, best_fill = 0;
  Sample best;
  constexpr int kAttempts = 8;
  for (int attempt = 0; attempt < kAttempts && budget > 0; ++attempt) {
    Draft draft(*cache, budget);
    compose(draft);
    Sample sample;
    sample.ids = frame.prefix;
    sample.ids.insert(sample.ids.end(), draft.ids().begin(), draft.ids().end());
    sample.ids.insert(sample.ids.end(), frame.suffix.begin(), frame.suffix.end());
    const auto counted = static_cast<std::int64_t>(sample.ids.size());
    if (!request.trust_pieces) sample.ids = encode_chat(*request.tokenizer, request.chat, draft.message());
    const auto total = static_cast<std::int64_t>(sample.ids.size());
    if (total <= target && total > best_fill) {
      sample.prompt = draft.message();
      sample.gold = std::move(draft.gold);
      sample.description = std::move(draft.description);
      sample.answer_text = std::move(draft.answer_text);
      sample.sections = count_sections(draft, *request.tokenizer, total - frame_tokens);
      sample.sections.emplace_back("frame", frame_tokens);
      best = std::move(sample);
      best_fill = total;
    }
    if (total <= target && (total * 100 >= target * 95 || total == counted)) break;
    // Pieces were joined (or split) by this tokenizer: scale the budget by what the whole text really took.
    const double ratio =
        static_cast<double>(full) / static_cast<double>(std::max<std::int64_t>(total - frame_tokens, 1));
    auto next = static_cast<std::int64_t>(std::floor(static_cast<double>(draft.placed()) * ratio * 0.995));
    if (total > target) next = std::min(next, budget - (total - target));
    if (next == budget) break;
    budget = next;
  }
  LACUNA_REQUIRE(
      best_fill * 10 >= target * 9,
      "{}: only {} of {} tokens could be filled (at least 90 % are asked for); choose another length or "
      "other parameters",
      who, best_fill, target);
  return best;
}

Template::Template(std::string_view text) {
  while (!text.empty()) {
    const auto open = text.find('{');
    if (open != 0) parts_.push_back({false, std::string(text.substr(0, open))});
    if (open == std::string_view::npos) break;
    const auto close = text.find('}', open);
    LACUNA_CHECK(close != std::string_view::npos, "template without closing brace: {}", text);
    parts_.push_back({true, std::string(text.substr(open + 1, close - open - 1))});
    text.remove_prefix(close + 1);
  }
}

void Template::add_to(Draft& draft) const {
  add_to(draft,
         [](const std::string& name) { LACUNA_CHECK(false, "nothing was given for placeholder {}", name); });
}

}  // namespace lacuna
