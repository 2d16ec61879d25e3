// A strategy says what to keep: a prefill selector, an evictor and a decode selector. Methods are found by
// name in a registry; each declares its parameters once.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "attention/types.h"
#include "core/params.h"

namespace lacuna {

/// Chooses, per layer, what prefill attention computes. Stateless between layers.
class PrefillSelector {
 public:
  virtual ~PrefillSelector() = default;
  /// Writes the lists for input.q on the CPU. Adds what choosing cost to `counts` (index_flops,
  /// index_seconds). Throws kInternal/kUsage naming layer and head when scores are NaN.
  virtual void select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const = 0;
};

/// Chooses, per layer after prefill, which cached tokens stay. Decisions across heads use input.communicator,
/// so they do not depend on the tensor-parallel degree.
class Evictor {
 public:
  virtual ~Evictor() = default;
  /// Kept token positions per local kv head, ascending; lengths may differ. Empty outer vector: keep
  /// everything.
  virtual std::vector<std::vector<std::int32_t>> keep(const PrefillInput& input,
                                                      AttentionCounts& counts) const = 0;
};

/// One decode step of one sequence in one layer.
struct DecodeInput {
  const float* q = nullptr;          ///< [q_heads, head_dim], rotated
  std::span<const PagedHead> heads;  ///< [kv_heads]; the newest token is already in the cache
  const float* pool = nullptr;       ///< page p starts at pool + p * page_elements
  std::int64_t page_elements = 0;
  LayerInfo info;
  Communicator* communicator = nullptr;
  std::uint64_t seed = 0;  ///< For methods that draw random numbers.
  ThreadPool* threads =
      nullptr;  ///< For choosing; null: on the calling thread alone. Results do not depend on it.
};

/// What a decode selector remembers about one layer of one sequence (page bounds, ...). Copied when a
/// sequence forks.
class DecodeState {
 public:
  virtual ~DecodeState() = default;
  virtual std::unique_ptr<DecodeState> clone() const = 0;
  /// Bytes this state adds to the resident cache.
  virtual std::size_t bytes() const = 0;
};

/// Chooses, per layer and step, which pages decode attention reads.
class DecodeSelector {
 public:
  virtual ~DecodeSelector() = default;
  /// True for `dense`: select() is never called and every page is read.
  virtual bool reads_everything() const { return false; }
  /// State for one layer of one sequence, empty. Null when the method needs none.
  virtual std::unique_ptr<DecodeState> make_state(const LayerInfo& info) const = 0;
  /// Brings the state up to date with the cache (new tokens since the last call; all of them after prefill or
  /// eviction), then writes one sorted list of page indices per local *query* head group (kv head) to `lists`
  /// [kv_heads], or per query head [q_heads] when the method chooses per query head.
  virtual void select(const DecodeInput& input, DecodeState* state, std::vector<PageList>& lists,
                      AttentionCounts& counts) const = 0;
};

/// One chosen method and its checked parameters.
struct MethodSpec {
  std::string method;
  Params params;
  bool operator==(const MethodSpec&) const = default;
};

/// The three slots. Default: dense / none / dense.
struct StrategySpec {
  MethodSpec prefill, evict, decode;
  bool operator==(const StrategySpec&) const = default;
};

enum class Slot { kPrefill, kEvict, kDecode };

/// What the registry knows of a method; --help, docs/strategies.md and the error messages are made from it.
struct MethodInfo {
  std::string name;
  Slot slot;
  std::string summary;    ///< One sentence.
  std::string reference;  ///< Paper (arXiv number) or "control".
  std::vector<ParamSpec> params = {};
  /// Parameter that a budget sets (see budget.h), or empty when the method takes none.
  std::string budget_param = {};
};

std::span<const MethodInfo> methods();
/// Throws kUsage with the nearest valid name.
const MethodInfo& find_method(Slot slot, const std::string& name, const std::string& where);

/// `{prefill: {vertical_slash: {verticals: 1024}}, evict: snapkv, decode: {quest: {budget: 2048}}}`: a method
/// name alone takes its defaults; an absent slot its default method. Throws kUsage starting with `where`.
StrategySpec parse_strategy(const nlohmann::json& given, const std::string& where);
/// The complete form with every parameter, in the same syntax; what is hashed and stored.
nlohmann::json to_json(const StrategySpec& spec);
/// Every method works with every method of the other slots: a decode selector sees the cache as the evictor
/// left it. Refuses a method in a slot it is not made for, and parameters that contradict each other, with
/// the reason (kUsage).
void check_combination(const StrategySpec& spec, const std::string& where);

std::unique_ptr<PrefillSelector> make_prefill_selector(const MethodSpec& spec);
std::unique_ptr<Evictor> make_evictor(const MethodSpec& spec);
std::unique_ptr<DecodeSelector> make_decode_selector(const MethodSpec& spec);

}  // namespace lacuna
