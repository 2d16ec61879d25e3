#include "tests/runner/fake_engine.h"

#include <chrono>
#include <cstdlib>
#include <thread>

#include "core/error.h"
#include "core/hash.h"
#include "core/json.h"

namespace lacuna::testing {

namespace {

bool is(const std::string& folder, std::string_view kind) { return folder.ends_with(kind); }

/// True when a fault was asked for and nobody has mended it.
bool faulty(const std::string& folder, std::string_view kind) {
  return is(folder, kind) && std::getenv("LACUNA_FAKE_FIXED") == nullptr;
}

std::int64_t milliseconds() {
  const char* text = std::getenv("LACUNA_FAKE_MS");
  return text != nullptr ? std::strtoll(text, nullptr, 10) : 1;
}

ModelFacts facts_of(const std::string& folder) {
  if (faulty(folder, "missing"))
    throw_usage("{}/config.json: cannot open: No such file or directory", folder);
  ModelFacts f;
  f.family = is(folder, "big") ? "big" : "qwen2";
  f.parameters = 1'000'000;
  f.layers = 4;
  f.q_heads = 8;
  f.kv_heads = 4;
  f.head_dim = 16;
  f.hidden = 128;
  f.mlp = 256;
  f.vocab = 1000;
  f.rope = "{}";
  f.dtype = "float32";
  f.config_hash = f.tokenizer_hash = "00000000000000000000000000000000";
  const char* version = std::getenv("LACUNA_FAKE_WEIGHTS");
  f.weights_hash = version != nullptr ? version : "w1";
  return f;
}

class FakeEngine final : public Engine {
 public:
  FakeEngine(EngineOptions options, Communicator& communicator)
      : options_(std::move(options)), communicator_(communicator), facts_(facts_of(options_.folder)) {}

  const ModelFacts& facts() const override { return facts_; }
  std::span<const TokenId> stop_ids() const override { return {}; }
  MemoryPlan plan_memory(const JobShape&) const override { return {}; }

  JobResult run(const JobRequest& request) override {
    communicator_.barrier();
    // Waits in small steps, as a real engine polls between layers.
    for (std::int64_t waited = 0; waited < milliseconds(); ++waited) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (request.cancelled && request.cancelled()) throw_resource("cancelled");
    }
    if (faulty(options_.folder, "throws")) throw_resource("out of device memory (fake)");
    JobResult job;
    job.prefill_seconds = 0.001;
    job.prefill_sparse.causal_cells = job.prefill_all.causal_cells = 1000;
    job.prefill_sparse.visited_cells = job.prefill_all.visited_cells =
        request.prefill.method == "dense" ? 1000 : 100;
    job.prefill_sparse.computed_cells = 1000;
    Hasher prompt;
    prompt.add_bytes(request.prompt.data(), request.prompt.size() * sizeof(TokenId));
    if (const char* salt = std::getenv("LACUNA_FAKE_SALT")) prompt.add(std::string_view(salt));
    prompt.add(request.prefill.method).add(request.prefill.params.to_json().dump()).add(request.seed);
    const std::uint64_t base = prompt.digest64();
    for (const auto& variant : request.variants) {
      Hasher hasher;
      hasher.add(base).add(variant.evict.method).add(variant.evict.params.to_json().dump());
      hasher.add(variant.decode.method).add(variant.decode.params.to_json().dump());
      std::uint64_t bits = hasher.digest64();
      VariantResult result;
      if (faulty(options_.folder, "nan") && base % 3 == 0) {
        result.error = "layer 2, head 1: scores are NaN (fake)";
      } else {
        const int length = 1 + static_cast<int>(bits % 7);
        for (int i = 0; i < std::min(length, variant.sampling.max_new_tokens); ++i, bits >>= 7) {
          result.ids.push_back(static_cast<TokenId>(40 + bits % 90));
        }
        result.stopped = length < variant.sampling.max_new_tokens;
      }
      result.decode_sparse.causal_cells = result.decode_all.causal_cells = 80;
      result.decode_sparse.visited_cells = variant.decode.method == "dense" ? 80 : 8;
      result.kv_bytes_resident_dense = 4096;
      result.kv_bytes_resident = variant.evict.method == "none" ? 4096 : 1024;
      job.variants.push_back(std::move(result));
    }
    return job;
  }

 private:
  EngineOptions options_;
  Communicator& communicator_;
  ModelFacts facts_;
};

}  // namespace

ModelServices fake_model_services() {
  ModelServices services;
  services.load_engine = [](const EngineOptions& options, Communicator& communicator,
                            ThreadPool&) -> std::unique_ptr<Engine> {
    if (faulty(options.folder, "noload"))
      throw_usage("{}/model.safetensors: cannot open (fake)", options.folder);
    return std::make_unique<FakeEngine>(options, communicator);
  };
  services.load_tokenizer = [](const std::string&) {
    return std::make_unique<Tokenizer>(Tokenizer::load("tests/tasks/golden"));
  };
  services.detect_chat = [](const std::string&) { return ChatFormat::kNone; };
  services.read_facts = [](const std::string& folder) { return facts_of(folder); };
  services.plan_memory = [](const ModelFacts& facts, Device, int, const JobShape& job) {
    MemoryPlan plan;
    plan.weights = facts.family == "big" ? std::int64_t{1} << 50 : 1 << 20;
    plan.kv_cache = job.tokens * std::ssize(job.variants);
    return plan;
  };
  return services;
}

}  // namespace lacuna::testing
