// The one error header: what can go wrong, and the checks that say so.
//
// Every error is a lacuna::Error. Library calls (CUDA, NCCL, MPI, HDF5) go through the check macros
// at the end, which throw with place, expression and the library's own text. Errors are caught once, in main,
// which adds rank and host. Checks are always on: they do not depend on NDEBUG.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "core/source_location.h"

namespace lacuna {

/// Who has to act on an error. Decides the exit code of the program.
enum class ErrorKind {
  kUsage,     ///< Wrong command line or wrong input file: the user mends it. Exit 2.
  kResource,  ///< Not enough memory, disk or devices for what was asked. Exit 1; fails a cell, not a sweep.
  kLibrary,   ///< A call into CUDA, NCCL, MPI, HDF5 or the operating system failed. Exit 1.
  kInternal,  ///< A broken invariant of our own. Exit 1.
};

/// The only exception type the project throws. what() is the whole message, ready to print.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, std::string message, SourceLocation where = SourceLocation::current());

  ErrorKind kind() const { return kind_; }
  const SourceLocation& where() const { return where_; }
  /// "file.cpp:12", the place in our source that threw.
  std::string place() const;

 private:
  ErrorKind kind_;
  SourceLocation where_;
};

/// The process exit code for an error kind: 2 for usage, 1 otherwise.
int exit_code(ErrorKind kind);

namespace detail {
/// Carries the call site together with a format string.
template <class... Args>
struct FormatAt {
  fmt::format_string<Args...> format;
  SourceLocation where;
  template <class S>
  consteval FormatAt(const S& s, SourceLocation w = SourceLocation::current())  // NOLINT
      : format(s), where(w) {}
};
}  // namespace detail

/// Throws an Error of kind kUsage: `throw_usage("{}: expected {}", file, what)`.
template <class... Args>
[[noreturn]] void throw_usage(detail::FormatAt<std::type_identity_t<Args>...> f, Args&&... args) {
  throw Error(ErrorKind::kUsage, fmt::format(f.format, std::forward<Args>(args)...), f.where);
}
template <class... Args>
[[noreturn]] void throw_resource(detail::FormatAt<std::type_identity_t<Args>...> f, Args&&... args) {
  throw Error(ErrorKind::kResource, fmt::format(f.format, std::forward<Args>(args)...), f.where);
}
template <class... Args>
[[noreturn]] void throw_library(detail::FormatAt<std::type_identity_t<Args>...> f, Args&&... args) {
  throw Error(ErrorKind::kLibrary, fmt::format(f.format, std::forward<Args>(args)...), f.where);
}
template <class... Args>
[[noreturn]] void throw_internal(detail::FormatAt<std::type_identity_t<Args>...> f, Args&&... args) {
  throw Error(ErrorKind::kInternal, fmt::format(f.format, std::forward<Args>(args)...), f.where);
}

}  // namespace lacuna

/// Input must satisfy `cond`; otherwise the user is told the formatted message (kUsage).
#define LACUNA_REQUIRE(cond, ...)                    \
  do {                                               \
    if (!(cond)) ::lacuna::throw_usage(__VA_ARGS__); \
  } while (false)

/// An invariant of our own code (kInternal). Stays on in release builds.
#define LACUNA_CHECK(cond, ...)                                                                       \
  do {                                                                                                \
    if (!(cond)) ::lacuna::throw_internal("check failed: {}: {}", #cond, ::fmt::format(__VA_ARGS__)); \
  } while (false)

// --- Library calls. The macros name library functions only where they are used, so this header includes
// none. ---

/// CUDA runtime. Out of memory becomes kResource, so that it fails a cell and not the run.
#define LACUNA_CUDA(expr)                                                                    \
  do {                                                                                       \
    const cudaError_t lacuna_status = (expr);                                                \
    if (lacuna_status == cudaErrorMemoryAllocation) {                                        \
      (void)cudaGetLastError();                                                              \
      ::lacuna::throw_resource("CUDA: {}: out of device memory", #expr);                     \
    }                                                                                        \
    if (lacuna_status != cudaSuccess)                                                        \
      ::lacuna::throw_library("CUDA: {}: {} ({})", #expr, cudaGetErrorString(lacuna_status), \
                              cudaGetErrorName(lacuna_status));                              \
  } while (false)

#define LACUNA_NCCL(expr)                                                                \
  do {                                                                                   \
    const ncclResult_t lacuna_status = (expr);                                           \
    if (lacuna_status != ncclSuccess)                                                    \
      ::lacuna::throw_library("NCCL: {}: {}", #expr, ncclGetErrorString(lacuna_status)); \
  } while (false)

#define LACUNA_MPI(expr)                                            \
  do {                                                              \
    const int lacuna_status = (expr);                               \
    if (lacuna_status != MPI_SUCCESS) {                             \
      char lacuna_text[MPI_MAX_ERROR_STRING] = {};                  \
      int lacuna_length = 0;                                        \
      MPI_Error_string(lacuna_status, lacuna_text, &lacuna_length); \
      ::lacuna::throw_library("MPI: {}: {}", #expr, lacuna_text);   \
    }                                                               \
  } while (false)

/// HDF5 calls report failure by a negative value. Yields the value.
#define LACUNA_HDF5(expr)                                                    \
  [&](auto lacuna_value) {                                                   \
    if (lacuna_value < 0) ::lacuna::throw_library("HDF5: {} failed", #expr); \
    return lacuna_value;                                                     \
  }(expr)
