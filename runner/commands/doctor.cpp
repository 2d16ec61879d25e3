// lacuna doctor: what this machine has, and what that allows.
#include <H5public.h>
#include <gnu/libc-version.h>
#include <mpi.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "core/text.h"
#include "core/thread_pool.h"
#include "model/cpu/kernels.h"
#include "model/engine.h"
#include "model/mpi.h"
#include "runner/commands/commands.h"
#if LACUNA_HAS_CUDA
#include <cuda_runtime_api.h>
#endif
#if LACUNA_HAS_NCCL
#include <nccl.h>
#endif

namespace lacuna {

namespace {

void say(const char* what, const std::string& text) { std::printf("%-10s %s\n", what, text.c_str()); }

/// The value of a "key : value" line of a /proc file, or "".
std::string proc_value(const std::string& path, const std::string& key) {
  if (!std::filesystem::exists(path)) return "";
  for (const std::string& line : split(read_file(path), '\n')) {
    if (line.starts_with(key)) return std::string(trim(line.substr(line.find(':') + 1)));
  }
  return "";
}

/// Bytes of a "Key:   123 kB" line of /proc/meminfo.
double memory_line(const std::string& key) {
  const std::string text = proc_value("/proc/meminfo", key);
  return text.empty() ? 0.0 : std::stod(text) * 1024.0;
}

/// The memory limit of this control group, or 0 when there is none.
double cgroup_limit() {
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    if (!std::filesystem::exists(path)) continue;
    const std::string text(trim(read_file(path)));
    if (text == "max" || text.empty()) return 0;
    const double bytes = std::stod(text);
    return bytes < 1e15 ? bytes : 0;  // version 1 writes a huge number for "none"
  }
  return 0;
}

void report_machine() {
  utsname name{};
  uname(&name);
  say("host",
      fmt::format("{}, {} {}, glibc {}", name.nodename, name.sysname, name.release, gnu_get_libc_version()));
  say("cores", fmt::format("{} usable of {}: {}", default_threads(), std::thread::hardware_concurrency(),
                           proc_value("/proc/cpuinfo", "model name")));
  say("isa",
      fmt::format(
          "{} kernels for linear layers and attention (LACUNA_CPU=avx2 or generic asks for lesser ones)",
          cpu::best_kernels().isa));
  const double limit = cgroup_limit();
  say("memory", fmt::format("{} available of {}{}", format_bytes(memory_line("MemAvailable")),
                            format_bytes(memory_line("MemTotal")),
                            limit > 0 ? ", limited to " + format_bytes(limit) : std::string()));
}

void report_libraries() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string mpi(text, static_cast<std::size_t>(length));
  say("mpi", mpi.substr(0, mpi.find(',')));
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  say("hdf5", fmt::format("{}.{}.{}, built with {}", major, minor, release, H5_VERSION));
}

/// Returns the number of GPUs this process can use.
int report_gpus() {
#if LACUNA_HAS_CUDA
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    say("gpus", fmt::format("none ({}); built with CUDA {}.{}",
                            status == cudaSuccess ? "no device" : cudaGetErrorString(status),
                            CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10));
    return 0;
  }
  int driver = 0;
  cudaDriverGetVersion(&driver);
  say("gpus", fmt::format("{}; driver for CUDA {}.{}, built with {}.{}", count, driver / 1000,
                          driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10));
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    say("", fmt::format("{}: {}, compute capability {}.{}, {}", i, properties.name, properties.major,
                        properties.minor, format_bytes(static_cast<double>(properties.totalGlobalMem))));
  }
  return count;
#else
  say("gpus", "this build has no CUDA (configure with nvcc on PATH, or -DLACUNA_CUDA=ON)");
  return 0;
#endif
}

void report_nccl() {
#if LACUNA_HAS_NCCL
  int version = 0;
  if (ncclGetVersion(&version) == ncclSuccess)
    say("nccl", fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100));
#else
  say("nccl", "not in this build");
#endif
}

/// What fits, from the memory there is: half of it for weights is a model that leaves room for its cache.
void report_verdict(int gpus) {
  double memory = memory_line("MemAvailable");
  if (const double limit = cgroup_limit(); limit > 0) memory = std::min(memory, limit);
  say("allows",
      fmt::format("models of up to about {} parameters in bf16 on the CPU{}; up to {} ranks with a core each",
                  format_count(memory / 2 / 2),
                  gpus > 0 ? fmt::format(", and {} GPU{}", gpus, gpus == 1 ? "" : "s") : std::string(),
                  default_threads()));
}

/// What a model folder needs, by config.json.
void report_model(const std::string& folder) {
  const ModelFacts facts = read_model_facts(folder);
  say("model",
      fmt::format(
          "{}: {}, {} parameters, {} layers ({} sliding), {} query and {} kv heads of {}, {} positions",
          folder, facts.family, format_count(static_cast<double>(facts.parameters)), facts.layers,
          facts.sliding_layers, facts.q_heads, facts.kv_heads, facts.head_dim, facts.max_positions));
  say("", "rope " + facts.rope);
  for (const std::int64_t tokens : {16384, 65536, 131072}) {
    const MemoryPlan plan = plan_memory(facts, Device::kCpu, 1, dense_job(tokens, 1024, 1));
    say("", fmt::format("{} tokens on one CPU rank: {} = weights {}, cache {}, activations {}, workspace {}",
                        tokens, format_bytes(static_cast<double>(plan.total())),
                        format_bytes(static_cast<double>(plan.weights)),
                        format_bytes(static_cast<double>(plan.kv_cache)),
                        format_bytes(static_cast<double>(plan.activations)),
                        format_bytes(static_cast<double>(plan.workspace))));
  }
}

void doctor(const std::string& model) {
  const MpiSession session;
  log::configure(session.rank(), session.size());
  run_together(session, [&] {
    if (session.rank() != 0) return;
    say("lacuna", LACUNA_VERSION);
    report_machine();
    report_libraries();
    say("ranks",
        session.size() == 1 ? "1 (start under mpirun or srun for more)" : std::to_string(session.size()));
    const int gpus = report_gpus();
    report_nccl();
    report_verdict(gpus);
    if (!model.empty()) report_model(model);
  });
}

}  // namespace

void add_doctor_command(CLI::App& app) {
  auto model = std::make_shared<std::string>();
  CLI::App* verb = app.add_subcommand("doctor", "Says what this machine has and what that allows");
  verb->add_option("--model", *model, "Also say what this model folder needs");
  verb->footer("Example: lacuna doctor --model assets/mini/micro");
  verb->callback([model] { doctor(*model); });
}

}  // namespace lacuna
