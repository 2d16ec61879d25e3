# lacuna_add_library(NAME SOURCES ... [CUDA_SOURCES ...] [LINK ...]): one static library per part.
# CUDA_SOURCES are built only when CUDA was found.
function(lacuna_add_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;CUDA_SOURCES;LINK" ${ARGN})
  set(sources ${ARG_SOURCES})
  if(LACUNA_HAS_CUDA)
    list(APPEND sources ${ARG_CUDA_SOURCES})
  endif()
  add_library(${name} STATIC ${sources})
  target_link_libraries(${name} PUBLIC lacuna_options ${ARG_LINK})
endfunction()

# lacuna_add_test(NAME SOURCES ... LINK ... [LABEL unit|mpi|slurm|gpu|slow] [RANKS 1 2 4] [TIMEOUT s] [ENV K=V ...])
# A GoogleTest executable. With RANKS it is run under mpirun once per rank count (label mpi), each with a timeout.
# Working directory: the source root, so that tests read tests/<part>/golden/... and assets/... by relative path.
set_property(GLOBAL PROPERTY LACUNA_TEST_NAMES "")
function(lacuna_add_test name)
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "SOURCES;LINK;RANKS;ENV" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(NOT ARG_LABEL)
    set(ARG_LABEL unit)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  if(ARG_RANKS)
    target_link_libraries(${name} PRIVATE ${ARG_LINK} GTest::gtest GTest::gmock MPI::MPI_CXX)
    foreach(ranks ${ARG_RANKS})
      lacuna_register_test(${name}.np${ranks} LABEL mpi TIMEOUT ${ARG_TIMEOUT} ENV ${ARG_ENV}
        COMMAND ${PROJECT_SOURCE_DIR}/scripts/mpirun ${ranks} $<TARGET_FILE:${name}>)
    endforeach()
  else()
    target_link_libraries(${name} PRIVATE ${ARG_LINK} GTest::gtest_main GTest::gmock)
    lacuna_register_test(${name} LABEL ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT} ENV ${ARG_ENV} COMMAND ${name})
  endif()
endfunction()

# lacuna_register_test(NAME LABEL l TIMEOUT s COMMAND ...): any command as a test (scripts included).
function(lacuna_register_test name)
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "COMMAND;ENV" ${ARGN})
  add_test(NAME ${name} COMMAND ${ARG_COMMAND} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  # Only GPU tests see GPUs: all others test the CPU on every machine alike.
  set(hide_gpus)
  if(NOT ARG_LABEL STREQUAL gpu)
    set(hide_gpus "CUDA_VISIBLE_DEVICES=")
  endif()
  # Exit code 77 means skipped: the test says in a line what is missing on this machine.
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT} SKIP_RETURN_CODE 77
    ENVIRONMENT "LACUNA_BIN=$<TARGET_FILE:lacuna>;LACUNA_SOURCE_DIR=${PROJECT_SOURCE_DIR};${hide_gpus};${ARG_ENV}")
  set_property(GLOBAL APPEND PROPERTY LACUNA_TEST_NAMES ${name})
endfunction()
