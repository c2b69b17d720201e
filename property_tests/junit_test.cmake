# Checks the JUnit files of runs that pass, fail, crash and are not supported against
# reports/junit.xsd. Files with an error must not pass it.
# cmake -DASSAY=... -DXMLLINT=... -DSCHEMA=... -DWORK=... -P
file(MAKE_DIRECTORY ${WORK})

function(validate file expected)
  execute_process(COMMAND ${XMLLINT} --noout --schema ${SCHEMA} ${file} RESULT_VARIABLE status ERROR_VARIABLE said)
  if(expected STREQUAL valid AND NOT status EQUAL 0)
    message(FATAL_ERROR "${file} is not valid: ${said}")
  elseif(expected STREQUAL invalid AND NOT status EQUAL 3)
    message(FATAL_ERROR "${file} should not be valid (xmllint: ${status}): ${said}")
  endif()
endfunction()

function(judge name status)
  execute_process(COMMAND ${ASSAY} check --junit ${WORK}/${name}.xml ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE said ERROR_VARIABLE said)
  if(NOT code EQUAL status)
    message(FATAL_ERROR "${name}: exit status ${code}: ${said}")
  endif()
  validate(${WORK}/${name}.xml valid)
endfunction()

judge(pass 0 --suite tiny)
judge(fail 1 --candidate fault:causal-off-by-one --suite tiny --no-shrink)
# The fallback of attention does not support products.
file(WRITE ${WORK}/cases "attention b=1 h=1 l=5x7 d=8\nproduct m=2 n=3 k=32 w=mxfp4\n")
judge(unsupported 0 --candidate unfused --cases ${WORK}/cases)
judge(error 3 --case "attention b=1 h=1 l=2000x2000 d=64" --memory 1)

file(READ ${WORK}/pass.xml pass)
file(READ ${WORK}/fail.xml fail)
file(READ ${WORK}/unsupported.xml unsupported)
file(READ ${WORK}/error.xml error)
foreach(part "fail;<failure" "unsupported;<skipped" "error;<error")
  list(GET part 0 name)
  list(GET part 1 element)
  string(FIND "${${name}}" "${element}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "${name}.xml has no ${element}: ${${name}}")
  endif()
endforeach()

# The schema must find each of these errors.
foreach(change "no count of tests; tests=\"[0-9]+\";" "no name of a case;<testcase classname=\"host\" name=\"[^\"]*\";<testcase classname=\"host\""
        "an element that is none;<testcase;<test" "no case;<testcase [^\n]*\n;" "a time in words;time=\"[0-9.]+\";time=\"soon\"")
  list(GET change 0 what)
  list(GET change 1 from)
  list(LENGTH change parts)
  set(to "")
  if(parts GREATER 2)
    list(GET change 2 to)
  endif()
  string(REGEX REPLACE "${from}" "${to}" broken "${pass}")
  if(broken STREQUAL pass)
    message(FATAL_ERROR "${what}: nothing was changed")
  endif()
  file(WRITE ${WORK}/broken.xml "${broken}")
  validate(${WORK}/broken.xml invalid)
endforeach()
