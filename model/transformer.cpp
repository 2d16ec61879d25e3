#include "model/transformer.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "model/memory_plan.h"

namespace lacuna {

namespace {

TensorView indices_of(const TensorView& indices, std::int64_t begin, std::int64_t count) {
  TensorView view = indices;
  view.data = indices.as<std::int32_t>() + begin;
  view.shape = {count};
  return view;
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, const Weights& files, const Shard& shard, Ops& ops,
                         Communicator& communicator, ThreadPool& threads)
    : config_(config),
      shard_(shard),
      ops_(ops),
      communicator_(communicator),
      threads_(threads),
      weights_(load_weights(files, config, shard, ops)),
      separate_local_rope_(config.sliding_layers() > 0 && config.local_rope != config.rope) {}

TensorView Transformer::take(Scratch& scratch, std::int64_t rows, std::int64_t cols, DType dtype) {
  const auto bytes = static_cast<std::size_t>(rows * cols) * size_of(dtype);
  if (scratch.buffer.bytes() < bytes) {
    scratch.buffer.reset();
    scratch.buffer =
        Buffer(bytes, ops_.device() == Device::kCpu ? Buffer::Kind::kHost : Buffer::Kind::kDevice);
  }
  return {.data = scratch.buffer.data(), .dtype = dtype, .device = ops_.device(), .shape = {rows, cols}};
}

TensorView Transformer::rows_of(const TensorView& matrix, std::int64_t begin, std::int64_t count) {
  TensorView view = matrix;
  view.data = static_cast<std::byte*>(matrix.data) +
              static_cast<std::size_t>(begin * matrix.shape[1]) * size_of(matrix.dtype);
  view.shape = {count, matrix.shape[1]};
  return view;
}

HeadsView Transformer::heads_of(const TensorView& matrix, int first_head, int heads) const {
  const std::int64_t d = config_.head_dim;
  return {.data = static_cast<std::byte*>(matrix.data) +
                  static_cast<std::size_t>(first_head * d) * size_of(matrix.dtype),
          .dtype = matrix.dtype,
          .device = matrix.device,
          .heads = heads,
          .tokens = matrix.shape[0],
          .head_dim = config_.head_dim,
          .head_stride = d,
          .token_stride = matrix.shape[1]};
}

LayerInfo Transformer::layer_info(int layer) const {
  return {.layer = layer,
          .layers = config_.layers,
          .q_heads = shard_.q_heads,
          .kv_heads = shard_.kv_heads,
          .q_head_begin = shard_.q_head_begin,
          .kv_head_begin = shard_.kv_head_begin,
          .q_heads_total = config_.q_heads,
          .kv_heads_total = config_.kv_heads,
          .head_dim = config_.head_dim,
          .scale = config_.attention_scale,
          .softcap = config_.attention_softcap,
          .window = sliding(layer) ? config_.window : 0};
}

void Transformer::ensure_rope(std::int64_t positions) {
  if (positions <= rope_positions_) return;
  const std::int64_t count = rope_positions(positions);
  rope_ = {};
  local_rope_ = {};
  rope_positions_ = 0;
  const std::int64_t half = config_.head_dim / 2;
  const auto build = [&](const RopeConfig& rope) {
    const auto frequencies = inverse_frequencies(rope, config_.head_dim);
    std::vector<float> cos(static_cast<std::size_t>(count * half)), sin(cos.size());
    constexpr std::int64_t kRows = 256;
    threads_.parallel_for(count / kRows, [&](std::int64_t b) {
      fill_rope_rows(frequencies, rope.attention_factor, b * kRows, kRows, cos.data() + b * kRows * half,
                     sin.data() + b * kRows * half);
    });
    RopeTable table{.cos = Tensor({count, half}, DType::kF32, ops_.device()),
                    .sin = Tensor({count, half}, DType::kF32, ops_.device())};
    ops_.upload(cos.data(), table.cos.data(), cos.size() * sizeof(float));
    ops_.upload(sin.data(), table.sin.data(), sin.size() * sizeof(float));
    ops_.synchronize();
    return table;
  };
  rope_ = build(config_.rope);
  if (separate_local_rope_) local_rope_ = build(config_.local_rope);
  rope_positions_ = count;
}

TensorView Transformer::upload_indices(Scratch& scratch, std::span<const std::int32_t> values) {
  const auto count = static_cast<std::int64_t>(values.size());
  const TensorView view = take(scratch, 1, count, DType::kI32);
  ops_.upload(values.data(), view.data, values.size_bytes());
  return {.data = view.data, .dtype = DType::kI32, .device = view.device, .shape = {count}};
}

void Transformer::reserve(std::int64_t tokens, std::int64_t positions, std::int64_t rows) {
  constexpr std::size_t kKeepBytes = std::size_t{8} << 20;
  const ActivationBytes bytes = activation_bytes(rank_shape(config_, shard_), ops_.device(), tokens, rows);
  const std::array<std::pair<Scratch*, std::int64_t>, 10> wanted = {{{&x_, bytes.x},
                                                                     {&normed_, bytes.normed},
                                                                     {&qkv_, bytes.qkv},
                                                                     {&attention_, bytes.attention},
                                                                     {&gate_up_, bytes.gate_up},
                                                                     {&activated_, bytes.activated},
                                                                     {&partial_, bytes.partial},
                                                                     {&logits_, bytes.logits},
                                                                     {&id_buffer_, bytes.ids},
                                                                     {&position_buffer_, bytes.positions}}};
  // First what goes, so that both are never there at once.
  ops_.synchronize();
  for (const auto& [scratch, size] : wanted) {
    if (scratch->buffer.bytes() > static_cast<std::size_t>(size) + kKeepBytes) scratch->buffer.reset();
  }
  ensure_rope(positions);
  for (const auto& [scratch, size] : wanted) take(*scratch, 1, size, DType::kU8);
}

QkvProjection Transformer::qkv_projection(int layer, const TensorView& positions, const TensorView& qkv) {
  const LayerWeights& w = weights_.layers[static_cast<std::size_t>(layer)];
  const bool norms = w.q_norm.data() != nullptr;
  return {.linear = {.norm = w.input_norm.view(),
                     .eps = config_.rms_eps,
                     .w = w.qkv,
                     .normed = take(normed_, qkv.shape[0], config_.hidden)},
          .qkv = qkv,
          .q = heads_of(qkv, 0, shard_.q_heads),
          .k = heads_of(qkv, shard_.q_heads, shard_.kv_heads),
          .v = heads_of(qkv, shard_.q_heads + shard_.kv_heads, shard_.kv_heads),
          .norms = {.q_weight = norms ? &w.q_norm.view() : nullptr,
                    .k_weight = norms ? &w.k_norm.view() : nullptr,
                    .eps = config_.rms_eps},
          .rope = rope_of(layer),
          .positions = positions};
}

template <class Work>
void Transformer::always_locally(const Work& work) {
  try {
    work();
  } catch (const Error& e) {
    if (shard_.tp == 1) throw;
    if (failure_.empty()) failure_ = e.what();
  }
}

void Transformer::add_to_residual(const TensorView& in, const LinearWeight& w, const Tensor& post_norm,
                                  const TensorView& x) {
  const bool normed = post_norm.data() != nullptr;
  if (shard_.tp == 1 && !normed) {
    ops_.linear(in, w, true, x);
    return;
  }
  const TensorView partial = take(partial_, x.shape[0], config_.hidden);
  locally([&] { ops_.linear(in, w, false, partial); });
  ops_.all_reduce(partial, communicator_);
  locally([&] {
    if (normed) return ops_.norm_and_add(partial, post_norm.view(), config_.rms_eps, x);
    ops_.add(partial, x);
  });
}

void Transformer::finish_attention(const TensorView& attention, int layer, const TensorView& x) {
  const LayerWeights& w = weights_.layers[static_cast<std::size_t>(layer)];
  add_to_residual(attention, w.o, w.post_attention_norm, x);
}

void Transformer::run_mlp(int layer, const TensorView& x) {
  const LayerWeights& w = weights_.layers[static_cast<std::size_t>(layer)];
  const std::int64_t rows = x.shape[0];
  const TensorView activated = take(activated_, rows, shard_.mlp);
  locally([&] {
    const NormedLinear by{.norm = w.mlp_norm.view(),
                          .eps = config_.rms_eps,
                          .w = w.gate_up,
                          .normed = take(normed_, rows, config_.hidden)};
    ops_.norm_and_gated_linear(x, by, config_.activation, take(gate_up_, rows, 2 * shard_.mlp), activated);
  });
  add_to_residual(activated, w.down, w.post_mlp_norm, x);
}

void Transformer::compute_logits(const TensorView& x) {
  logits_view_ = take(logits_, x.shape[0], shard_.vocab, DType::kF32);
  ops_.norm_and_linear_f32(x,
                           {.norm = weights_.final_norm.view(),
                            .eps = config_.rms_eps,
                            .w = weights_.head,
                            .normed = take(normed_, x.shape[0], config_.hidden)},
                           config_.logit_softcap, logits_view_);
}

void Transformer::run_attention(int layer, const PrefillInput& input, const PrefillSelector* selector,
                                const TensorView& attention, const PrefillCalls& calls,
                                AttentionCounts& counts_sparse, AttentionCounts& counts_all) {
  locally([&] {
    AttentionCounts counts;
    ops_.attention_prefill(input, sliding(layer) ? nullptr : selector, heads_of(attention, 0, shard_.q_heads),
                           counts);
    counts_all += counts;
    if (!sliding(layer)) counts_sparse += counts;
  });
  // Evictors talk with the other ranks.
  if (shard_.tp > 1 && calls.agree) calls.agree(failure_);
  always_locally([&] {
    if (calls.on_layer) calls.on_layer(layer, input);
  });
  if (shard_.tp > 1 && calls.agree) calls.agree(failure_);
}

void Transformer::prefill(std::span<const TokenId> prompt, const PrefillSelector* selector,
                          std::uint64_t seed, const PrefillCalls& calls, AttentionCounts& counts_sparse,
                          AttentionCounts& counts_all) {
  const auto tokens = static_cast<std::int64_t>(prompt.size());
  const std::int64_t d = config_.head_dim;
  failure_.clear();
  positions_.resize(prompt.size());
  std::iota(positions_.begin(), positions_.end(), 0);
  TensorView ids, positions;
  locally([&] {
    ensure_rope(tokens);
    ids = upload_indices(id_buffer_, prompt);
    positions = upload_indices(position_buffer_, positions_);
  });
  const TensorView x = take(x_, tokens, config_.hidden);
  const TensorView qkv = take(qkv_, tokens, (shard_.q_heads + 2 * shard_.kv_heads) * d);
  const TensorView attention = take(attention_, tokens, shard_.q_heads * d);
  locally([&] { ops_.embed(weights_.embedding, ids, config_.embedding_scale, x); });
  if (shard_.tp > 1) ops_.all_reduce(x, communicator_);

  const auto for_chunks = [&](const auto& body) {
    const std::int64_t chunk = token_chunk(ops_.device());
    for (std::int64_t at = 0; at < tokens; at += chunk) body(at, std::min(chunk, tokens - at));
  };
  for (int layer = 0; layer < config_.layers; ++layer) {
    if (calls.between_layers) calls.between_layers();
    for_chunks([&](std::int64_t at, std::int64_t count) {
      locally([&] {
        const QkvProjection by =
            qkv_projection(layer, indices_of(positions, at, count), rows_of(qkv, at, count));
        ops_.norm_and_linear(rows_of(x, at, count), by.linear, by.qkv);
        ops_.norm_and_rotate(by.q, by.k, by.norms, by.rope, by.positions);
      });
    });
    const PrefillInput input{.q = heads_of(qkv, 0, shard_.q_heads),
                             .k = heads_of(qkv, shard_.q_heads, shard_.kv_heads),
                             .v = heads_of(qkv, shard_.q_heads + shard_.kv_heads, shard_.kv_heads),
                             .info = layer_info(layer),
                             .communicator = &communicator_,
                             .seed = seed,
                             .threads = &threads_};
    run_attention(layer, input, selector, attention, calls, counts_sparse, counts_all);
    const bool last = layer + 1 == config_.layers;
    if (last) {  // only the last token's logits are needed, so its rows of the last layer are all that count
      finish_attention(rows_of(attention, tokens - 1, 1), layer, rows_of(x, tokens - 1, 1));
      run_mlp(layer, rows_of(x, tokens - 1, 1));
      continue;
    }
    for_chunks([&](std::int64_t at, std::int64_t count) {
      finish_attention(rows_of(attention, at, count), layer, rows_of(x, at, count));
      run_mlp(layer, rows_of(x, at, count));
    });
  }
  locally([&] { compute_logits(rows_of(x, tokens - 1, 1)); });
  if (shard_.tp > 1 && calls.agree) calls.agree(failure_);
}

/// A slot for the step's token in every layer and head of every sequence, and the rows that describe them.
void Transformer::extend_caches(std::span<StepSequence> batch, PagePool& pool) {
  const auto kv_heads = static_cast<std::size_t>(shard_.kv_heads);
  const std::size_t heads = static_cast<std::size_t>(config_.layers) * kv_heads;
  copies_.clear();
  for (StepSequence& step : batch) {
    if (!step.error->empty()) continue;
    const std::size_t copies = copies_.size();
    try {
      for (int layer = 0; layer < config_.layers; ++layer) {
        for (int h = 0; h < shard_.kv_heads; ++h) {
          step.cache->extend(layer, h, 1, copies_);
          if (sliding(layer)) step.cache->drop_before_window(layer, h, config_.window);
        }
      }
    } catch (const Error& e) {
      // No page is left: this sequence ends here and gives its pages to the others.
      *step.error = e.what();
      copies_.resize(copies);
      step.cache->clear();
    }
  }
  if (!copies_.empty()) ops_.copy_pages(copies_, pool.view());

  paged_.resize(batch.size() * heads);
  rows_.resize(batch.size());
  for (std::size_t i = 0; i < batch.size(); ++i) {
    for (std::size_t j = 0; j < heads; ++j)
      paged_[i * heads + j] =
          batch[i].cache->head(static_cast<int>(j / kv_heads), static_cast<int>(j % kv_heads)).view();
    rows_[i] = {.sequence = batch[i].sequence,
                .heads = std::span(paged_).subspan(i * heads, heads),
                .context_tokens = batch[i].position + 1,
                .seed = batch[i].seed,
                .error = batch[i].error};
  }
  ops_.begin_step(rows_, pool.view());
}

void Transformer::decode_layers(const TensorView& ids, const TensorView& positions) {
  const std::int64_t rows = ids.shape[0], d = config_.head_dim;
  const TensorView x = take(x_, rows, config_.hidden);
  const TensorView qkv = take(qkv_, rows, (shard_.q_heads + 2 * shard_.kv_heads) * d);
  const TensorView attention = take(attention_, rows, shard_.q_heads * d);
  locally([&] { ops_.embed(weights_.embedding, ids, config_.embedding_scale, x); });
  if (shard_.tp > 1) ops_.all_reduce(x, communicator_);
  for (int layer = 0; layer < config_.layers; ++layer) {
    always_locally([&] {
      ops_.project_and_decode_layer(x, qkv_projection(layer, positions, qkv), layer_info(layer),
                                    communicator_, heads_of(attention, 0, shard_.q_heads));
    });
    finish_attention(attention, layer, x);
    run_mlp(layer, x);
  }
  locally([&] { compute_logits(x); });
}

void Transformer::decode(std::span<StepSequence> batch, PagePool& pool,
                         const std::function<std::string(const std::string& error)>& agree) {
  ids_.resize(batch.size());
  positions_.resize(batch.size());
  std::int64_t furthest = 0;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    ids_[i] = batch[i].token;
    positions_[i] = static_cast<std::int32_t>(batch[i].position);
    furthest = std::max(furthest, batch[i].position);
  }
  TensorView ids, positions;
  failure_.clear();
  try {
    ensure_rope(furthest + 1);
    extend_caches(batch, pool);
    ids = upload_indices(id_buffer_, ids_);
    positions = upload_indices(position_buffer_, positions_);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kResource) throw;
    failure_ = e.what();
  }
  failure_ = agree(failure_);
  logits_view_ = take(logits_, std::ssize(batch), shard_.vocab, DType::kF32);
  if (failure_.empty()) ops_.run_step(communicator_, [&] { decode_layers(ids, positions); });
  if (failure_.empty()) return;
  for (StepSequence& step : batch) {
    if (step.error->empty()) *step.error = failure_;
  }
}

std::int64_t Transformer::workspace_bytes() const {
  std::size_t bytes = 0;
  for (const Scratch* s : {&x_, &normed_, &qkv_, &attention_, &gate_up_, &activated_, &partial_, &logits_,
                           &id_buffer_, &position_buffer_})
    bytes += s->buffer.bytes();
  for (const RopeTable* table : {&rope_, &local_rope_}) {
    if (table->cos.data() != nullptr) bytes += table->cos.view().bytes() + table->sin.view().bytes();
  }
  return static_cast<std::int64_t>(bytes);
}

}  // namespace lacuna
