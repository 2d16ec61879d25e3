// cuBLASLt, loaded when the first engine on a GPU is made: linked, it would cost every command of the program
// 60 ms and 90 MB of memory, GPU or not.
#pragma once

#include <cublasLt.h>

#include <memory>

namespace lacuna {

/// The functions we call, without their prefix.
struct CublasLt {
  decltype(&cublasLtCreate) Create;
  decltype(&cublasLtDestroy) Destroy;
  decltype(&cublasLtMatrixLayoutCreate) MatrixLayoutCreate;
  decltype(&cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy;
  decltype(&cublasLtMatmulDescCreate) MatmulDescCreate;
  decltype(&cublasLtMatmulDescDestroy) MatmulDescDestroy;
  decltype(&cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute;
  decltype(&cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate;
  decltype(&cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute;
  decltype(&cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic;
  decltype(&cublasLtMatmul) Matmul;
  decltype(&cublasLtGetStatusString) GetStatusString;
};

/// Loads the library at the first call. Throws kLibrary, with what the loader says, when it is not there.
const CublasLt& cublas_lt();
/// Throws kLibrary with the library's text unless `status` is success.
void check_cublas(cublasStatus_t status, const char* what);

/// Gives a handle back.
struct CublasLtRelease {
  void operator()(cublasLtHandle_t handle) const { (void)cublas_lt().Destroy(handle); }
  void operator()(cublasLtMatrixLayout_t layout) const { (void)cublas_lt().MatrixLayoutDestroy(layout); }
  void operator()(cublasLtMatmulDesc_t operation) const { (void)cublas_lt().MatmulDescDestroy(operation); }
  void operator()(cublasLtMatmulPreference_t preference) const {
    (void)cublas_lt().MatmulPreferenceDestroy(preference);
  }
};
template <class Handle>
using CublasLtOwner = std::unique_ptr<std::remove_pointer_t<Handle>, CublasLtRelease>;

}  // namespace lacuna
