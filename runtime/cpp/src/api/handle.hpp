// A handle of the C API, and who may use it when.
#pragma once

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "errors.hpp"
#include "runtime/pipeline.hpp"

struct var_edge_model {
    template <typename... Arguments>
    explicit var_edge_model(Arguments&&... arguments)
        : pipeline(std::forward<Arguments>(arguments)...),
          backend(pipeline.backend().name()),
          batches(pipeline.backend().batches().begin(), pipeline.backend().batches().end()),
          process(getpid()) {}

    var_edge_impl::Pipeline pipeline;
    const std::string backend;  // with `batches`: what var_edge_query returns pointers to
    const std::vector<std::int32_t> batches;
    const pid_t process;  // threads and locks of the engine do not pass through fork

    std::mutex mutex;  // guards what follows
    bool busy = false, stopping = false;
    var_edge_model* partner = nullptr;  // the other handle of the running call, if one drafts for the other
};

namespace var_edge_impl {

inline void check_process(const var_edge_model* model, const char* name = "model") {
    if (model->process == getpid()) return;
    throw bad_argument(std::string(name) + ": created before a fork, in process " + std::to_string(model->process) +
                       "; create a handle in this process");
}

// Marks a handle as busy while it lives. Throws Error BAD_ARGUMENT, with the argument's name, if the handle is serving
// another call: nobody waits for a handle, so two calls cannot wait for each other.
class Exclusive {
  public:
    explicit Exclusive(var_edge_model* model, const char* name = "model") : model_(model) {
        check_process(model, name);
        const std::lock_guard<std::mutex> lock(model->mutex);
        if (model->busy) {
            throw bad_argument(std::string(name) +
                               ": busy with another call, in another thread or around this callback; use one handle"
                               " per thread");
        }
        model->busy = true;
        model->stopping = false;
    }
    ~Exclusive() {
        const std::lock_guard<std::mutex> lock(model_->mutex);
        model_->busy = false;
        model_->pipeline.stop(false);
    }
    Exclusive(const Exclusive&) = delete;
    Exclusive& operator=(const Exclusive&) = delete;

    bool stopped() const {
        const std::lock_guard<std::mutex> lock(model_->mutex);
        return model_->stopping;
    }

  private:
    var_edge_model* model_;
};

// Makes a handle draft for another while it lives: both are busy, and a stop of either stops both.
class Drafting {
  public:
    Drafting(var_edge_model* model, var_edge_model* draft) : model_(model), draft_(draft), exclusive_(draft, "draft") {
        join(model, draft);
        join(draft, model);
    }
    ~Drafting() {  // before they are free for other calls
        join(model_, nullptr);
        join(draft_, nullptr);
    }
    Drafting(const Drafting&) = delete;
    Drafting& operator=(const Drafting&) = delete;

    bool stopped() const { return exclusive_.stopped(); }

  private:
    static void join(var_edge_model* model, var_edge_model* partner) {
        const std::lock_guard<std::mutex> lock(model->mutex);
        model->partner = partner;
        if (partner && model->stopping) partner->pipeline.stop(true);  // it was stopped before
    }

    var_edge_model *model_, *draft_;
    Exclusive exclusive_;
};

// Asks the running call, if there is one, to stop.
inline void stop(var_edge_model* model) {
    check_process(model);
    const std::lock_guard<std::mutex> lock(model->mutex);
    if (!model->busy) return;
    model->stopping = true;
    model->pipeline.stop(true);
    if (model->partner) model->partner->pipeline.stop(true);
}

}  // namespace var_edge_impl
