# Compiler settings shared by every target of ours, through the interface target lacuna_options.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

add_library(lacuna_options INTERFACE)
target_include_directories(lacuna_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(lacuna_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
    # Reassociation stays off: results must not depend on the compiler. -Wrestrict misfires in GCC 12 (PR 105651).
    -ffp-contract=on -fno-fast-math
    $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>>)
if(LACUNA_WERROR)
  target_compile_options(lacuna_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(LACUNA_SANITIZE)
  target_compile_options(lacuna_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${LACUNA_SANITIZE} -fno-omit-frame-pointer -g>)
  target_link_options(lacuna_options INTERFACE -fsanitize=${LACUNA_SANITIZE})
endif()
