// Which communicator a tensor-parallel team gets.
#pragma once

#include <mpi.h>

#include <memory>

#include "core/communicator.h"
#include "core/tensor.h"

namespace lacuna {

/// Collective over `comm`, which may be freed afterwards. One rank: SelfCommunicator. On the CPU:
/// MpiCommunicator. On CUDA, with each rank's device current: NcclCommunicator when every rank has a GPU of
/// its own and this build has NCCL, otherwise MpiCommunicator, whose sums go through host memory. Ranks that
/// share a GPU are told by their PCI address; with NCCL 2.30 or later and NCCL_MULTI_RANK_GPU_ENABLE=1 they
/// get NCCL too. LACUNA_NCCL_TIMEOUT sets the seconds after which a sum that hangs is given up (default 120).
std::unique_ptr<Communicator> make_team_communicator(MPI_Comm comm, Device device);

}  // namespace lacuna
