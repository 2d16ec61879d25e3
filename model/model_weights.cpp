#include "model/model_weights.h"

#include <array>
#include <set>

#include "core/error.h"

namespace lacuna {

namespace {

/// Finds tensors by their family's names and remembers which were used.
class Loader {
 public:
  Loader(const Weights& files, const ModelConfig& c, const Shard& s, Ops& ops)
      : files_(files), c_(c), s_(s), ops_(ops) {
    // Vision-language folders put the text model below another name; two generations of the library differ.
    if (c.multimodal) {
      prefix_ = files.has("language_model.model.embed_tokens.weight") ? "language_model.model."
                                                                      : "model.language_model.";
    }
  }

  ModelWeights load() {
    ModelWeights w;
    const std::int64_t hidden = c_.hidden;
    const MatrixSlice embedding = matrix(prefix_ + "embed_tokens.weight", c_.vocab, hidden);
    w.embedding = ops_.make_embedding(rows(embedding, s_.vocab_begin, s_.vocab), s_.vocab_begin);
    for (int layer = 0; layer < c_.layers; ++layer) w.layers.push_back(load_layer(layer));
    w.final_norm = norm(prefix_ + "norm.weight", hidden);
    const std::string head =
        prefix_ == "language_model.model." ? "language_model.lm_head.weight" : "lm_head.weight";
    const MatrixSlice head_matrix = c_.tied_embeddings ? embedding : matrix(head, c_.vocab, hidden);
    const MatrixSlice head_rows = rows(head_matrix, s_.vocab_begin, s_.vocab);
    w.head = c_.tied_embeddings ? ops_.make_tied_head(w.embedding, head_rows)
                                : ops_.make_linear(std::array{head_rows}, {});
    if (c_.tied_embeddings) used_.insert(head);  // some folders store the tied matrix twice
    refuse_surplus();
    count_bytes(w);
    return w;
  }

 private:
  MatrixSlice matrix(const std::string& name, std::int64_t rows, std::int64_t cols) {
    used_.insert(name);
    return files_.matrix(name, rows, cols);
  }
  MatrixSlice vector(const std::string& name, std::int64_t n) {
    used_.insert(name);
    return files_.vector(name, n);
  }
  Tensor norm(const std::string& name, std::int64_t n) {
    return ops_.make_vector(vector(name, n), c_.norm_plus_one ? 1.0f : 0.0f);
  }

  static MatrixSlice rows(MatrixSlice m, std::int64_t begin, std::int64_t count) {
    m.data = static_cast<const std::byte*>(m.data) +
             static_cast<std::size_t>(begin * m.row_stride) * size_of(m.dtype);
    m.rows = count;
    return m;
  }
  static MatrixSlice cols(MatrixSlice m, std::int64_t begin, std::int64_t count) {
    m.data = static_cast<const std::byte*>(m.data) + static_cast<std::size_t>(begin) * size_of(m.dtype);
    m.cols = count;
    return m;
  }

  /// Rows [begin, begin + count) of several matrices NAME.weight [total, inputs] stacked, with their biases.
  struct Part {
    std::string name;
    std::int64_t total, begin, count;
  };
  LinearWeight by_rows(std::initializer_list<Part> parts, std::int64_t inputs, bool bias) {
    std::vector<MatrixSlice> slices, biases;
    for (const Part& part : parts) {
      slices.push_back(rows(matrix(part.name + ".weight", part.total, inputs), part.begin, part.count));
      if (bias) biases.push_back(cols(vector(part.name + ".bias", part.total), part.begin, part.count));
    }
    return ops_.make_linear(slices, biases);
  }
  /// Columns [begin, begin + count) of NAME.weight [outputs, total]. The sum over ranks must see the bias
  /// once.
  LinearWeight by_cols(const Part& part, std::int64_t outputs, bool bias) {
    const MatrixSlice slice =
        cols(matrix(part.name + ".weight", outputs, part.total), part.begin, part.count);
    std::vector<MatrixSlice> biases;
    if (bias) biases.push_back(vector(part.name + ".bias", outputs));
    if (s_.rank != 0) biases.clear();
    return ops_.make_linear(std::array{slice}, biases);
  }

  LayerWeights load_layer(int layer) {
    const std::string at = prefix_ + "layers." + std::to_string(layer) + ".";
    const std::string attention = at + "self_attn.", mlp = at + "mlp.";
    const std::int64_t hidden = c_.hidden, d = c_.head_dim;
    LayerWeights w;
    w.input_norm = norm(at + "input_layernorm.weight", hidden);
    if (c_.post_norms) {
      w.post_attention_norm = norm(at + "post_attention_layernorm.weight", hidden);
      w.mlp_norm = norm(at + "pre_feedforward_layernorm.weight", hidden);
      w.post_mlp_norm = norm(at + "post_feedforward_layernorm.weight", hidden);
    } else {
      w.mlp_norm = norm(at + "post_attention_layernorm.weight", hidden);
    }
    if (c_.qk_norm) {
      w.q_norm = norm(attention + "q_norm.weight", d);
      w.k_norm = norm(attention + "k_norm.weight", d);
    }
    const Part q{attention + "q_proj", c_.q_heads * d, s_.q_head_begin * d, s_.q_heads * d};
    const Part k{attention + "k_proj", c_.kv_heads * d, s_.kv_head_begin * d, s_.kv_heads * d};
    const Part v{attention + "v_proj", c_.kv_heads * d, s_.kv_head_begin * d, s_.kv_heads * d};
    w.qkv = by_rows({q, k, v}, hidden, c_.qkv_bias);
    w.o = by_cols({attention + "o_proj", c_.q_heads * d, s_.q_head_begin * d, s_.q_heads * d}, hidden,
                  c_.o_bias);
    w.gate_up = by_rows(
        {{mlp + "gate_proj", c_.mlp, s_.mlp_begin, s_.mlp}, {mlp + "up_proj", c_.mlp, s_.mlp_begin, s_.mlp}},
        hidden, c_.mlp_bias);
    w.down = by_cols({mlp + "down_proj", c_.mlp, s_.mlp_begin, s_.mlp}, hidden, c_.mlp_bias);
    return w;
  }

  void refuse_surplus() const {
    for (const std::string& name : files_.names()) {
      if (used_.contains(name) || name.ends_with(".rotary_emb.inv_freq"))
        continue;  // a buffer old folders store
      if (c_.multimodal && (name.find("vision_tower.") != std::string::npos ||
                            name.find("multi_modal_projector.") != std::string::npos))
        continue;
      throw_usage("{}: tensor '{}' is not part of a {} model as config.json describes it",
                  files_.file_of(name), name, name_of(c_.family));
    }
  }

  static void count_bytes(ModelWeights& w) {
    const auto linear = [](const LinearWeight& l) {
      return static_cast<std::int64_t>(l.storage.bytes() +
                                       l.bias.view().bytes() * (l.bias.data() != nullptr));
    };
    w.bytes = linear(w.head) + static_cast<std::int64_t>(w.embedding.table.bytes()) +
              static_cast<std::int64_t>(w.final_norm.view().bytes());
    for (const LayerWeights& layer : w.layers) {
      w.bytes += linear(layer.qkv) + linear(layer.o) + linear(layer.gate_up) + linear(layer.down);
      for (const Tensor* t : {&layer.input_norm, &layer.mlp_norm, &layer.post_attention_norm,
                              &layer.post_mlp_norm, &layer.q_norm, &layer.k_norm}) {
        if (t->data() != nullptr) w.bytes += static_cast<std::int64_t>(t->view().bytes());
      }
    }
  }

  const Weights& files_;
  const ModelConfig& c_;
  const Shard& s_;
  Ops& ops_;
  std::string prefix_ = "model.";
  std::set<std::string> used_;
};

}  // namespace

ModelWeights load_weights(const Weights& files, const ModelConfig& config, const Shard& shard, Ops& ops) {
  return Loader(files, config, shard, ops).load();
}

}  // namespace lacuna
