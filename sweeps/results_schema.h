// The layout of results.h5 in one place: names, types, units and meanings of everything in it. The writer,
// the readers and docs/results-format.md agree through this header (a test compares it with the page).
#pragma once

#include <array>
#include <span>
#include <string_view>

namespace lacuna::schema {

/// Raised when a reader of the previous version would misread the file; adding columns does not raise it.
inline constexpr int kSchemaVersion = 1;

enum class ColumnType { kU8, kI32, kI64, kU64, kF64, kString };

/// One 1-D dataset. Strings are fixed-width, UTF-8, NUL-padded; the width is that of the longest value.
struct Column {
  std::string_view name;
  ColumnType type;
  std::string_view unit;  ///< "1" for pure numbers, "" for names.
  std::string_view description;
};

// --- Groups and datasets
// -----------------------------------------------------------------------------------------
inline constexpr std::string_view kSamples = "/samples";
inline constexpr std::string_view kText = "/text";
inline constexpr std::string_view kTextBytes = "/text/bytes";
inline constexpr std::string_view kTextOffset = "/text/offset";
inline constexpr std::string_view kCells = "/cells";
inline constexpr std::string_view kModels = "/models";
inline constexpr std::string_view kTasks = "/tasks";
inline constexpr std::string_view kStrategies = "/strategies";
inline constexpr std::string_view kCube = "/cube";
inline constexpr std::string_view kProvenance = "/provenance";
inline constexpr std::string_view kAnalysis = "/analysis";

/// /text/offset has kTextsPerSample entries per row of /samples, and one more: text j of row i is
/// bytes[offset[kTextsPerSample*i + j], offset[kTextsPerSample*i + j + 1]).
inline constexpr int kTextsPerSample = 3;
enum TextKind { kPrediction = 0, kGold = 1, kAnswerOrError = 2 };

/// Attributes of the root group.
inline constexpr std::string_view kAttrSchemaVersion = "schema_version";
inline constexpr std::string_view kAttrProgramVersion = "program_version";
inline constexpr std::string_view kAttrGitCommit = "git_commit";
inline constexpr std::string_view kAttrSweepName = "sweep_name";
inline constexpr std::string_view kAttrSweepHash = "sweep_hash";
inline constexpr std::string_view kAttrSeed = "seed";
inline constexpr std::string_view kAttrCreated = "created";
inline constexpr std::string_view kAttrComplete = "complete";
/// Attributes of every dataset.
inline constexpr std::string_view kAttrUnit = "unit";
inline constexpr std::string_view kAttrDescription = "description";

/// Scalar string datasets in /provenance (datasets, because attributes end at 64 KiB).
inline constexpr std::string_view kProvenanceSweep = "/provenance/sweep";  // resolved sweep, JSON
inline constexpr std::string_view kProvenanceLaunches =
    "/provenance/launches";  // JSON array, one object per launch

// --- /samples: one row per (cell, sample), sorted by (cell, sample)
// -----------------------------------------------
enum SampleStatus : unsigned char { kOk = 0, kFailed = 1 };

inline constexpr std::array kSampleColumns = {
    Column{"cell", ColumnType::kI32, "1", "Row of /cells"},
    Column{"sample", ColumnType::kI32, "1",
           "Sample number, from 0; the same number is the same prompt in every strategy"},
    Column{"status", ColumnType::kU8, "1", "0: ok, 1: failed (text 2 of the row says why)"},
    Column{"score", ColumnType::kF64, "1", "Score of the answer, 0 to 1; NaN when failed"},
    Column{"no_answer", ColumnType::kU8, "1", "1: the output held no answer (score 0)"},
    Column{"stopped", ColumnType::kU8, "1", "1: ended by a stop token, 0: cut at max_new_tokens"},
    Column{"input_tokens", ColumnType::kI32, "tokens", "Prompt length, chat frame included"},
    Column{"output_tokens", ColumnType::kI32, "tokens", "Generated tokens, without the stop token"},
    Column{
        "sparsity_computed", ColumnType::kF64, "1",
        "1 - visited/causal query-key cells, over the phases in which the strategy is sparse; 0 for dense"},
    Column{"sparsity_prefill", ColumnType::kF64, "1",
           "1 - visited/causal query-key cells of prefill attention"},
    Column{"sparsity_decode", ColumnType::kF64, "1",
           "1 - visited/causal query-key cells of the decode steps"},
    Column{"sparsity_bytes", ColumnType::kF64, "1",
           "1 - K and V bytes read by decode steps / those a full cache needs"},
    Column{"sparsity_resident", ColumnType::kF64, "1",
           "1 - cache bytes after eviction / cache bytes of the whole prompt"},
    Column{"tile_efficiency", ColumnType::kF64, "1",
           "Visited / computed cells of prefill attention (masked parts of tiles count as computed)"},
    Column{"prefill_s", ColumnType::kF64, "s", "Wall time of the prefill, shared by all rows of the job"},
    Column{"evict_s", ColumnType::kF64, "s", "Wall time of choosing and compacting what the cache keeps"},
    Column{"decode_s", ColumnType::kF64, "s", "Wall time of the decode batch this row was part of"},
    Column{"index_s", ColumnType::kF64, "s",
           "Time spent on choosing (prefill and decode selectors, evictor)"},
    Column{"shared", ColumnType::kI32, "1",
           "Rows that shared this prefill and decoded in one batch; divide prefill_s by it to add up"},
    Column{"flops", ColumnType::kF64, "FLOP",
           "Prefill: matrix products, executed attention and index; decode: executed attention and index"},
    Column{"attention_flops", ColumnType::kF64, "FLOP", "Executed attention, prefill and decode"},
    Column{"index_flops", ColumnType::kF64, "FLOP", "Spent on choosing"},
    Column{"kv_bytes_read", ColumnType::kF64, "B", "K and V bytes read by the decode steps, all layers"},
    Column{"index_bytes_read", ColumnType::kF64, "B",
           "Bytes of page bounds and the like read by decode selectors"},
    Column{"kv_bytes_resident", ColumnType::kI64, "B",
           "Cache bytes of this row alone after eviction, all ranks"},
    Column{"peak_bytes", ColumnType::kI64, "B", "Largest memory of one rank of the team during the job"},
    Column{"team", ColumnType::kI32, "1", "World rank of the team's first rank"},
    Column{"seed", ColumnType::kU64, "1", "Seed of the sample"},
    Column{"finished", ColumnType::kF64, "s", "End of the job, seconds since 1970-01-01 UTC"},
};

// --- /cells: one row per cell, in the sweep's order
// ---------------------------------------------------------------
inline constexpr std::array kCellColumns = {
    Column{"key", ColumnType::kString, "", "Hash of the cell's resolved settings, 16 hex digits"},
    Column{"model", ColumnType::kString, "", "Name of the model in the sweep"},
    Column{"task", ColumnType::kString, "", "Name of the task in the sweep"},
    Column{"strategy", ColumnType::kString, "",
           "Name of the strategy in the sweep, without its sparsity level"},
    Column{"phase", ColumnType::kString, "",
           "Where it is sparse: dense, prefill, decode (eviction included) or both"},
    Column{"prefill", ColumnType::kString, "", "Prefill method"},
    Column{"evict", ColumnType::kString, "", "Eviction method"},
    Column{"decode", ColumnType::kString, "", "Decode method"},
    Column{"settings", ColumnType::kString, "", "The strategy with every parameter, as JSON"},
    Column{"length", ColumnType::kI32, "tokens", "Target prompt length"},
    Column{"sparsity", ColumnType::kF64, "1",
           "Requested sparsity; 0: dense, NaN: given by the method's own parameters or in tokens"},
    Column{"model_index", ColumnType::kI32, "1", "Row of /models and index on the cube's model axis"},
    Column{"task_index", ColumnType::kI32, "1", "Row of /tasks and index on the cube's task axis"},
    Column{"length_index", ColumnType::kI32, "1", "Index on the cube's length axis"},
    Column{"strategy_index", ColumnType::kI32, "1",
           "Row of /strategies and index on the cube's strategy axis"},
    Column{"sparsity_index", ColumnType::kI32, "1", "Index on the cube's sparsity axis"},
    Column{"samples", ColumnType::kI32, "1", "Samples asked for"},
    Column{"n", ColumnType::kI32, "1", "Samples done and ok"},
    Column{"failed", ColumnType::kI32, "1", "Samples failed"},
    Column{"state", ColumnType::kString, "",
           "done, failed (no sample is ok and none is left to run), partial or pending"},
    Column{"reason", ColumnType::kString, "",
           "Why the cell or its first failed sample failed (at most 400 bytes)"},
    Column{"score_mean", ColumnType::kF64, "1", "Mean score of the ok samples; NaN without any"},
    Column{"score_sem", ColumnType::kF64, "1",
           "Standard error of that mean, s/sqrt(n) with s over n-1; NaN for n < 2"},
    Column{"sparsity_computed", ColumnType::kF64, "1", "Mean of the samples' sparsity_computed"},
    Column{"sparsity_prefill", ColumnType::kF64, "1", "Mean of the samples' sparsity_prefill"},
    Column{"sparsity_decode", ColumnType::kF64, "1", "Mean of the samples' sparsity_decode"},
    Column{"sparsity_bytes", ColumnType::kF64, "1", "Mean of the samples' sparsity_bytes"},
    Column{"sparsity_resident", ColumnType::kF64, "1", "Mean of the samples' sparsity_resident"},
    Column{"input_tokens", ColumnType::kF64, "tokens", "Mean prompt length"},
    Column{"output_tokens", ColumnType::kF64, "tokens", "Mean number of generated tokens"},
    Column{"prefill_s", ColumnType::kF64, "s",
           "Mean wall time of the prefill (not divided among the rows that shared it)"},
    Column{"decode_s", ColumnType::kF64, "s", "Mean wall time of the decode batch"},
    Column{"flops", ColumnType::kF64, "FLOP", "Mean of the samples' flops"},
    Column{"kv_bytes_read", ColumnType::kF64, "B", "Mean of the samples' kv_bytes_read"},
};

// --- /models, /tasks, /strategies: one row per entry of the sweep
// -------------------------------------------------
inline constexpr std::array kModelColumns = {
    Column{"name", ColumnType::kString, "", "Name in the sweep"},
    Column{"path", ColumnType::kString, "", "Folder"},
    Column{"family", ColumnType::kString, "",
           "qwen2, llama, qwen3, gemma3 or mistral; empty when the model never loaded"},
    Column{"parameters", ColumnType::kI64, "1", "Parameters, embeddings included"},
    Column{"layers", ColumnType::kI32, "1", "Transformer layers"},
    Column{"q_heads", ColumnType::kI32, "1", "Query heads"},
    Column{"kv_heads", ColumnType::kI32, "1", "Key-value heads"},
    Column{"head_dim", ColumnType::kI32, "1", "Channels per head"},
    Column{"hidden", ColumnType::kI32, "1", "Residual width"},
    Column{"mlp", ColumnType::kI32, "1", "MLP width"},
    Column{"vocab", ColumnType::kI32, "1", "Vocabulary size"},
    Column{"sliding_layers", ColumnType::kI32, "1",
           "Layers with sliding-window attention, which strategies leave alone"},
    Column{"sliding_window", ColumnType::kI32, "tokens", "Their window"},
    Column{"tp", ColumnType::kI32, "1", "Tensor-parallel degree"},
    Column{"dtype", ColumnType::kString, "", "Type of weights and activations"},
    Column{"device", ColumnType::kString, "", "cpu or cuda"},
    Column{"chat", ColumnType::kString, "", "Chat format"},
    Column{"rope", ColumnType::kString, "", "RoPE settings in effect, JSON"},
    Column{"config_hash", ColumnType::kString, "", "XXH3-128 of config.json"},
    Column{"tokenizer_hash", ColumnType::kString, "", "XXH3-128 of tokenizer.json"},
    Column{"weights_hash", ColumnType::kString, "", "Hash of the weight files"},
};

inline constexpr std::array kTaskColumns = {
    Column{"name", ColumnType::kString, "", "Name in the sweep"},
    Column{"task", ColumnType::kString, "", "Registered task"},
    Column{"group", ColumnType::kString, "", "single_qa, multiple_qa, high_scope or high_dispersion"},
    Column{"metric", ColumnType::kString, "", "exact_match, token_f1 or iou"},
    Column{"params", ColumnType::kString, "", "Every parameter, JSON"},
};

inline constexpr std::array kStrategyColumns = {
    Column{"name", ColumnType::kString, "", "Name in the sweep, without the sparsity level"},
    Column{"phase", ColumnType::kString, "", "dense, prefill, decode or both"},
    Column{"prefill", ColumnType::kString, "", "Prefill method"},
    Column{"evict", ColumnType::kString, "", "Eviction method"},
    Column{"decode", ColumnType::kString, "", "Decode method"},
};

// --- /cube: float64 [model, task, length, strategy, sparsity], NaN where not run
// -----------------------------------
/// The axes, in order; each is also a dataset /cube/<name> and the dimension scale of that name.
inline constexpr std::array<std::string_view, 5> kCubeAxes = {"model", "task", "length", "strategy",
                                                              "sparsity"};
/// The cubes: columns of /cells of the same name, but for `score` = score_mean.
inline constexpr std::array<std::string_view, 11> kCubes = {"score",
                                                            "score_sem",
                                                            "n",
                                                            "sparsity_computed",
                                                            "sparsity_prefill",
                                                            "sparsity_decode",
                                                            "sparsity_bytes",
                                                            "sparsity_resident",
                                                            "prefill_s",
                                                            "decode_s",
                                                            "flops"};

}  // namespace lacuna::schema
