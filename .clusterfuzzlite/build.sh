#!/usr/bin/env bash
exec "$SRC/assay/fuzz/oss-fuzz/build.sh"
