#include "model/cuda/gemm.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "core/error.h"
#include "core/tensor.h"
#include "model/cuda/cublas_lt.h"
#include "model/cuda/sizes.h"
#include "model/cuda/skinny.h"

namespace lacuna {

namespace {

using Handle = CublasLtOwner<cublasLtHandle_t>;
using Operation = CublasLtOwner<cublasLtMatmulDesc_t>;
using Layout = CublasLtOwner<cublasLtMatrixLayout_t>;
using Preference = CublasLtOwner<cublasLtMatmulPreference_t>;

/// Row-major [rows, cols] is what cuBLAS calls column-major [cols, rows].
Layout layout(cudaDataType type, std::int64_t rows, std::int64_t cols) {
  cublasLtMatrixLayout_t made = nullptr;
  check_cublas(cublas_lt().MatrixLayoutCreate(&made, type, static_cast<std::uint64_t>(cols),
                                              static_cast<std::uint64_t>(rows), cols),
               "cublasLtMatrixLayoutCreate");
  return Layout(made);
}

template <class T>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check_cublas(cublas_lt().MatmulDescSetAttribute(operation.get(), attribute, &value, sizeof value),
               "cublasLtMatmulDescSetAttribute");
}
template <class T>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  check_cublas(cublas_lt().MatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value),
               "cublasLtMatmulPreferenceSetAttribute");
}

struct Plan {
  Operation operation;
  Layout w, x, y;
  cublasLtMatmulAlgo_t algorithm{};
};

using PlanKey =
    std::tuple<std::int64_t, std::int64_t, std::int64_t, bool, bool>;  // rows, outputs, inputs, bias, f32

/// Largest power of two up to 16 that divides the length of y's rows in bytes: what every row is aligned to.
std::uint32_t row_alignment(std::int64_t row_bytes) {
  return static_cast<std::uint32_t>(std::min<std::int64_t>(16, row_bytes & -row_bytes));
}

}  // namespace

class GemmRunner::Impl {
 public:
  explicit Impl(cudaStream_t stream)
      : stream_(stream), workspace_(static_cast<std::size_t>(kGemmWorkspaceBytes), Buffer::Kind::kDevice) {
    cublasLtHandle_t handle = nullptr;
    check_cublas(cublas_lt().Create(&handle), "cublasLtCreate");
    handle_.reset(handle);
  }

  void run(const GemmCall& call) {
    if (call.path == GemmPath::kSkinny || (call.path == GemmPath::kAuto && call.rows <= kSkinnyRows))
      return run_skinny(call);
    const float alpha = 1.0f, beta = call.accumulate ? 1.0f : 0.0f;
    const Plan& plan = plan_of(call);
    if (call.bias != nullptr) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);
    check_cublas(cublas_lt().Matmul(handle_.get(), plan.operation.get(), &alpha, call.w, plan.w.get(), call.x,
                                    plan.x.get(), &beta, call.y, plan.y.get(), call.y, plan.y.get(),
                                    &plan.algorithm, workspace_.data(), workspace_.bytes(), stream_),
                 "cublasLtMatmul");
  }

 private:
  void run_skinny(const GemmCall& call) const {
    LACUNA_CHECK(call.rows <= kSkinnyRows, "{} rows are not few", call.rows);
    launch_skinny({.x = static_cast<const __nv_bfloat16*>(call.x),
                   .w = static_cast<const __nv_bfloat16*>(call.w),
                   .bias = static_cast<const __nv_bfloat16*>(call.bias),
                   .rows = static_cast<int>(call.rows),
                   .inputs = static_cast<int>(call.inputs),
                   .outputs = call.outputs},
                  {.y = call.y, .accumulate = call.accumulate, .float_output = call.float_output}, stream_);
  }

  const Plan& plan_of(const GemmCall& call) {
    const PlanKey shape{call.rows, call.outputs, call.inputs, call.bias != nullptr, call.float_output};
    const auto found = plans_.find(shape);
    return found != plans_.end() ? found->second : plans_.emplace(shape, make_plan(call)).first->second;
  }

  Plan make_plan(const GemmCall& call) const {
    const cudaDataType y_type = call.float_output ? CUDA_R_32F : CUDA_R_16BF;
    Plan plan{.operation = nullptr,
              .w = layout(CUDA_R_16BF, call.outputs, call.inputs),
              .x = layout(CUDA_R_16BF, call.rows, call.inputs),
              .y = layout(y_type, call.rows, call.outputs)};
    cublasLtMatmulDesc_t operation = nullptr;
    check_cublas(cublas_lt().MatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                 "cublasLtMatmulDescCreate");
    plan.operation.reset(operation);
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    if (call.bias != nullptr) {
      set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
      set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);
    }

    cublasLtMatmulPreference_t made = nullptr;
    check_cublas(cublas_lt().MatmulPreferenceCreate(&made), "cublasLtMatmulPreferenceCreate");
    const Preference preference(made);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_.bytes());
    // Partial sums meet in float32, never in y's type.
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        std::uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    // Rows of activations may start anywhere in a larger tensor.
    const std::uint32_t y_alignment =
        row_alignment(call.outputs * static_cast<std::int64_t>(call.float_output ? sizeof(float) : 2));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::uint32_t{256});
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, std::uint32_t{16});
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y_alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y_alignment);

    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    const cublasStatus_t status =
        cublas_lt().MatmulAlgoGetHeuristic(handle_.get(), plan.operation.get(), plan.w.get(), plan.x.get(),
                                           plan.y.get(), plan.y.get(), preference.get(), 1, &result, &count);
    if (status != CUBLAS_STATUS_SUCCESS || count == 0 || result.state != CUBLAS_STATUS_SUCCESS)
      throw_library("cuBLASLt has no product [{}, {}] x [{}, {}]^T in bfloat16{}: {}", call.rows, call.inputs,
                    call.outputs, call.inputs, call.float_output ? " with float32 results" : "",
                    cublas_lt().GetStatusString(status));
    plan.algorithm = result.algo;
    return plan;
  }

  cudaStream_t stream_;
  Buffer workspace_;
  Handle handle_;
  std::map<PlanKey, Plan> plans_;
};

GemmRunner::GemmRunner(cudaStream_t stream) : impl_(std::make_unique<Impl>(stream)) {}
GemmRunner::~GemmRunner() = default;
void GemmRunner::run(const GemmCall& call) { impl_->run(call); }

}  // namespace lacuna
