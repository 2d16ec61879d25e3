#include "model/cuda/cublas_lt.h"

#include <dlfcn.h>

#include "core/error.h"

namespace lacuna {

namespace {

#define LACUNA_TEXT(x) #x
#define LACUNA_VALUE_TEXT(x) LACUNA_TEXT(x)
constexpr const char* kName = "libcublasLt.so." LACUNA_VALUE_TEXT(CUBLAS_VER_MAJOR);

std::string loader_says() {
  const char* text = dlerror();
  return text != nullptr ? text : "no reason given";
}

void* open_library() {
  // A program that defines the functions itself comes first (tests without a GPU).
  if (dlsym(RTLD_DEFAULT, "cublasLtCreate") != nullptr) return RTLD_DEFAULT;
  void* library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) return library;
  const std::string reason = loader_says();
  library = dlopen(LACUNA_CUBLASLT_PATH, RTLD_NOW | RTLD_LOCAL);  // where the build found it
  if (library == nullptr)
    throw_library("the CUDA engine needs {}: {}; add its folder to LD_LIBRARY_PATH, or use device cpu", kName,
                  reason);
  return library;
}

template <class Function>
Function find(void* library, const char* name) {
  void* symbol = dlsym(library, name);
  if (symbol == nullptr) throw_library("{} has no {}: {}", kName, name, loader_says());
  return reinterpret_cast<Function>(symbol);
}

CublasLt load() {
  void* library = open_library();
  CublasLt lt{};
#define LACUNA_FIND(name) lt.name = find<decltype(lt.name)>(library, "cublasLt" #name)
  LACUNA_FIND(Create);
  LACUNA_FIND(Destroy);
  LACUNA_FIND(MatrixLayoutCreate);
  LACUNA_FIND(MatrixLayoutDestroy);
  LACUNA_FIND(MatmulDescCreate);
  LACUNA_FIND(MatmulDescDestroy);
  LACUNA_FIND(MatmulDescSetAttribute);
  LACUNA_FIND(MatmulPreferenceCreate);
  LACUNA_FIND(MatmulPreferenceDestroy);
  LACUNA_FIND(MatmulPreferenceSetAttribute);
  LACUNA_FIND(MatmulAlgoGetHeuristic);
  LACUNA_FIND(Matmul);
  LACUNA_FIND(GetStatusString);
#undef LACUNA_FIND
  return lt;
}

}  // namespace

const CublasLt& cublas_lt() {
  static const CublasLt lt = load();
  return lt;
}

void check_cublas(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw_library("cuBLASLt: {}: {}", what, cublas_lt().GetStatusString(status));
}

}  // namespace lacuna
