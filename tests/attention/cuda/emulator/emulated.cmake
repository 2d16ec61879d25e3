# lacuna_emulated_sources(SOURCES...): how kernels that were translated to C++ are compiled. An address that is no
# multiple of what it is read or written as stops a GPU, and an index outside of an array is an error there too.
set(LACUNA_EMULATED_CHECKS -fsanitize=alignment,bounds -fno-sanitize-recover=all)
function(lacuna_emulated_sources)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "-w;-fpermissive;-g1;${LACUNA_EMULATED_CHECKS}")
endfunction()
