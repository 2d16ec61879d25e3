# lacuna_emulated_sources(SOURCES...): how kernels that were translated to C++ are compiled. An address that is no
# multiple of what it is read or written as stops a GPU, and an index outside of an array is an error there too.
set(LACUNA_EMULATED_CHECKS -fsanitize=alignment,bounds -fno-sanitize-recover=all)
function(lacuna_emulated_sources)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "-w;-fpermissive;-g1;${LACUNA_EMULATED_CHECKS}")
endfunction()

# lacuna_watched_sources(VARIABLE FOLDER SOURCES...): copies of them, compiled so that races.cpp sees every access.
function(lacuna_watched_sources variable folder)
  set(copies)
  foreach(source ${ARGN})
    get_filename_component(name ${source} NAME)
    add_custom_command(OUTPUT ${folder}/${name} COMMAND ${CMAKE_COMMAND} -E copy ${source} ${folder}/${name}
      DEPENDS ${source} VERBATIM)
    list(APPEND copies ${folder}/${name})
  endforeach()
  set_source_files_properties(${copies} PROPERTIES COMPILE_OPTIONS "-w;-fpermissive;-g1;-fsanitize=thread")
  set(${variable} ${copies} PARENT_SCOPE)
endfunction()
