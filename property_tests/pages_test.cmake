# cmake -DWEB=SOURCE -DINSTALLED=BUILD -DNODE=PROGRAM -P pages_test.cmake: the browser tests of the pages, beside the packages that the build has installed.
cmake_policy(SET CMP0057 NEW)  # IN_LIST
separate_arguments(lacking UNIX_COMMAND "$ENV{ASSAY_LACKING}")  # what ./dev found no package of
if("chromium" IN_LIST lacking AND NOT DEFINED ENV{CHROMIUM})
  message(NOTICE "this release has no package chromium")
  return()
endif()
file(COPY ${WEB}/test ${WEB}/fixtures DESTINATION ${INSTALLED})
file(GLOB tests ${INSTALLED}/test/*.test.mjs)
if(NOT tests)
  message(FATAL_ERROR "no test of the pages was found")
endif()
# The pages are those that the program holds. Two files of tests at a time keep two cores busy; each has a browser of its own. The
# reporter tells at the end what failed.
execute_process(COMMAND ${CMAKE_COMMAND} -E env ASSAY_PAGES=${INSTALLED}/dist ${NODE} --test --test-reporter=spec --test-concurrency=2 ${tests}
  WORKING_DIRECTORY ${INSTALLED} RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "the pages fail in the browser")
endif()
