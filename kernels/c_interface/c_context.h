// The contexts of the C interface. A test with a backend of its own puts the backend behind a
// handle here.
#pragma once

#include <assay/assay.h>

#include <memory>

#include "kernels/dispatch/dispatch.h"

namespace assay::kernels {

struct Context {
  Context(std::shared_ptr<const AttentionBackend> backend, DispatchSettings settings, int threads_)
      : threads(threads_), dispatcher(std::move(backend), std::move(settings)) {}
  const int threads;
  Dispatcher dispatcher;
};
assay_context add_context(std::shared_ptr<Context> context);
std::shared_ptr<Context> context_of(assay_context handle);

}  // namespace assay::kernels
