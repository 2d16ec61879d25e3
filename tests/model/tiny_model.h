// Tiny model folders for tests, written from a config.json and the generator that golden/make_golden.py uses
// too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/tokenizer.h"

namespace lacuna::testing {

/// A folder below the system's temporary one, removed at the end.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& name);
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

struct TinyTensor {
  std::vector<std::int64_t> shape;
  std::string dtype;  ///< "F32", "BF16", "F16"
  std::string bytes;
};
using TinyTensors = std::map<std::string, TinyTensor>;

/// The tensors of a model, filled as make_golden.py fills them.
TinyTensors tiny_tensors(const ModelConfig& config);
/// The bytes of a safetensors file.
std::string safetensors_bytes(const TinyTensors& tensors);
/// Splits the tensors over `files` files with an index.
void write_sharded(const std::string& folder, const TinyTensors& tensors, int files);
void write_text(const std::string& path, const std::string& text);

/// Writes config.json and model.safetensors; returns `folder`.
std::string write_tiny_model(const std::string& folder, const std::string& config_json);
/// The prompt of make_golden.py.
std::vector<TokenId> tiny_prompt(int length, int vocab = 300);
/// config.json of a small model with 8 query heads, 4 kv heads, head_dim 16, bf16.
std::string small_config(const std::string& model_type = "qwen2", const std::string& more = "");

}  // namespace lacuna::testing
