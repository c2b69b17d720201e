# For CDash: configure with ASSAY_CDASH_URL=https://SERVER/submit.php?project=NAME in the environment, then, in the build folder,
# `ctest -D Experimental`, or `-D Nightly`. docs/results.md says more.
set(CTEST_PROJECT_NAME "Assay")
set(CTEST_NIGHTLY_START_TIME "01:00:00 UTC")
set(CTEST_SUBMIT_URL "$ENV{ASSAY_CDASH_URL}")
