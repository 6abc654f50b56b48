// Who may call what, and when: threads, callbacks, forks, and handles on the same weights.
#include <chrono>
#include <fstream>
#include <memory>
#include <thread>

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "features.hpp"

namespace {

void busy(const std::string& directory) {
    Model model(directory, one_thread());
    const Pictures alone = model.generate({1, 2}, of_seed(3));
    std::vector<std::uint8_t> image(alone.images);
    std::vector<std::int32_t> tokens(alone.tokens);
    const double box[4] = {0, 0, 1, 1};
    const std::int32_t labels[4] = {0, 1, 2, 3};
    const auto all_refused = [&](const std::string& where) {
        const std::string says = "busy with another call";
        var_edge_model* other = nullptr;
        refused(where + " generate", var_edge_generate(model.get(), labels, 4, nullptr, image.data(), nullptr),
                VAR_EDGE_BAD_ARGUMENT, says);
        refused(where + " edit",
                var_edge_edit(model.get(), image.data(), box, nullptr, VAR_EDGE_INPAINT, labels, 1, nullptr,
                              image.data(), nullptr),
                VAR_EDGE_BAD_ARGUMENT, says);
        refused(where + " encode", var_edge_encode(model.get(), image.data(), 1, tokens.data()), VAR_EDGE_BAD_ARGUMENT,
                says);
        refused(where + " share", var_edge_share(model.get(), &other), VAR_EDGE_BAD_ARGUMENT, says);
        var_edge_free(model.get());
        expect(std::strstr(var_edge_last_error(), says.c_str()), where + " free");
        expect(model.info().tokens > 0, where + " query");
    };
    const Pictures inside = model.generate({1, 2}, of_seed(3), [&](const var_edge::Scale&) {
        all_refused("callback");
        return true;
    });
    expect(same(alone, inside), "a callback that misuses the handle alters the pictures");
    const Pictures beside = model.generate({1, 2}, of_seed(3), [&](const var_edge::Scale&) {
        std::thread other([&] {
            all_refused("thread");
            refused("preview", var_edge_preview(model.get(), image.data()), VAR_EDGE_BAD_ARGUMENT,
                    "only within on_scale, in its thread");
        });
        other.join();
        return true;
    });
    expect(same(alone, beside), "another thread alters the pictures");
}

// Many threads on one handle without any order: each call is right or refused.
void scramble(const std::string& directory) {
    Model model(directory, one_thread());
    const Pictures alone = model.generate({1, 2}, of_seed(3));
    std::atomic<int> right{0}, wrong{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
            for (int n = 0; n < 25; ++n) {
                try {
                    (same(alone, model.generate({1, 2}, of_seed(3))) ? right : wrong) += 1;
                } catch (const var_edge::Error& error) {
                    if (error.status != VAR_EDGE_BAD_ARGUMENT) ++wrong;
                }
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    expect(right > 0 && wrong == 0, std::to_string(wrong) + " wrong, " + std::to_string(right) + " right");
}

void fork_child(const std::string& directory) {
    Model model(directory, one_thread());
    const Pictures alone = model.generate({1}, of_seed(3));
    const pid_t child = fork();
    if (child == 0) {
        refused("child", draw(model, of_seed(3)), VAR_EDGE_BAD_ARGUMENT, "created before a fork");
        var_edge_free(model.get());
        expect(std::strstr(var_edge_last_error(), "created before a fork"), "free in the child");
        Model own(directory, one_thread());
        expect(same(alone, own.generate({1}, of_seed(3))), "a handle of the child draws something else");
        std::cout.flush();
        _exit(failures);
    }
    int status = 0;
    expect(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "child");
    expect(same(alone, model.generate({1}, of_seed(3))), "after fork the parent draws something else");
}

void cancel(const std::string& directory) {
    Model model(directory, one_thread());
    bool returned = false;
    std::thread thread([&] {
        model.generate({1}, of_seed(3), [](const var_edge::Scale&) {
            pthread_cancel(pthread_self());
            pthread_testcancel();
            return true;
        });
        returned = true;
        pthread_testcancel();
        returned = false;
    });
    thread.join();
    expect(returned, "a cancelled thread ends after the call, not in it");
    model.generate({1}, of_seed(3));
}

// Stops when the stage `where` of scale `at` has run: the next one must not.
struct StopAt {
    var_edge_model* model;
    std::string where, heard;
    std::int32_t at;
};

void stop_at(const char* stage, std::int32_t scale, double, void* user) {
    auto& self = *static_cast<StopAt*>(user);
    self.heard = stage;
    if (self.where == stage && self.at == scale) var_edge_stop(self.model);
}

void stop(const std::string& directory) {
    Model model(directory, one_thread());
    const std::int32_t last = model.info().scales - 1;
    const Pictures alone = model.generate({1}, of_seed(3));
    for (const auto& [where, at] : std::vector<std::pair<std::string, std::int32_t>>{
             {"condition", -1}, {"transformer", 1}, {"bridge", 0}, {"bridge", last}, {"decoder", -1}}) {
        StopAt heard{model.get(), where, "", at};
        Settings settings = of_seed(3);
        settings.on_stage = stop_at;
        settings.user = &heard;
        refused(where, draw(model, settings), VAR_EDGE_STOPPED, "stopped by var_edge_stop");
        expect(heard.heard == where, "stopped at " + where + ", but " + heard.heard + " ran");
    }
    model.stop();  // nothing is running
    expect(same(alone, model.generate({1}, of_seed(3))), "a handle that was stopped draws something else");
    int scales = 0;
    try {
        model.generate({1}, of_seed(3), [&](const var_edge::Scale&) {
            ++scales;
            std::thread([&] { model.stop(); }).join();
            return true;
        });
        expect(false, "not stopped");
    } catch (const var_edge::Error& error) {
        expect(error.status == VAR_EDGE_STOPPED && scales == 1, "stopped by another thread");
    }
}

// Nobody listens, so that a backend may draw each batch as a whole: the call ends after one of them.
void stop_between(const std::string& directory) {
    Model model(directory, one_thread());
    const std::vector<std::int32_t> labels(4096, 1);
    const var_edge_info info = model.info();
    std::vector<std::uint8_t> images(var_edge::picture_bytes(info, labels.size()));
    std::vector<std::int32_t> tokens(labels.size() * std::size_t(info.tokens), -1);
    Settings settings = of_seed(3);
    settings.batch = 1;
    const Pictures alone = model.generate({1}, settings);
    std::atomic<bool> ended{false};
    std::thread other([&] {
        while (!ended) {  // until the call is running
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            model.stop();
        }
    });
    const var_edge_status status = var_edge_generate(model.get(), labels.data(), std::int32_t(labels.size()), &settings,
                                                     images.data(), tokens.data());
    ended = true;
    refused("between", status, VAR_EDGE_STOPPED, "stopped by var_edge_stop");
    other.join();
    expect(tokens.back() == -1, "all pictures are drawn");
    expect(same(alone, model.generate({1}, settings)), "a handle that was stopped draws something else");
}

void share(const std::string& directory) {
    auto first = std::make_unique<Model>(directory, one_thread());
    const Pictures alone[2] = {first->generate({1}, of_seed(1)), first->generate({1}, of_seed(2))};
    Model second = first->share();
    Pictures together[2];
    std::thread other([&] { together[1] = second.generate({1}, of_seed(2)); });
    together[0] = first->generate({1}, of_seed(1));
    other.join();
    expect(same(alone[0], together[0]) && same(alone[1], together[1]), "together they draw something else");
    first.reset();
    expect(same(alone[1], second.share().generate({1}, of_seed(2))), "without the first it draws something else");
}

Settings drafted_by(Model& draft, std::int32_t scales) {
    Settings settings = of_seed(3);
    settings.draft = draft.get();
    settings.draft_scales = scales;
    return settings;
}

// What a callback may ask for, of every scale.
struct Shown {
    std::vector<std::int32_t> indices;
    std::vector<std::vector<std::int32_t>> tokens;
    std::vector<std::vector<float>> logits;
    std::vector<std::vector<std::uint8_t>> previews;

    bool add(const var_edge::Scale& scale) {
        indices.push_back(scale.index);
        tokens.push_back(scale.tokens());
        logits.push_back(scale.logits());
        previews.push_back(scale.preview());
        return true;
    }
};

// A model drafts for a handle on its own weights, which then draws as it does alone; whoever is freed first.
void draft(const std::string& directory) {
    auto large = std::make_unique<Model>(directory, one_thread());
    auto small = std::make_unique<Model>(directory, one_thread());
    const std::int32_t scales = small->info().scales;
    const Pictures alone = small->generate({1, 2, 3}, of_seed(3));
    for (std::int32_t count = 0; count <= scales; ++count) {
        Settings settings = drafted_by(*large, count);
        expect(same(alone, small->generate({1, 2, 3}, settings)), std::to_string(count) + " scales");
        settings.batch = 2;
        expect(alone.tokens == small->generate({1, 2, 3}, settings).tokens, "in batches");
    }
    small->generate({1}, drafted_by(*large, scales - 1), [&](const var_edge::Scale&) {
        std::vector<std::uint8_t> image(alone.images);
        refused("busy", draw(*large, of_seed(3)), VAR_EDGE_BAD_ARGUMENT, "model: busy with another call");
        refused("busy with itself", draw(*small, drafted_by(*large, 1)), VAR_EDGE_BAD_ARGUMENT, "model: busy");
        var_edge_free(large->get());
        expect(std::strstr(var_edge_last_error(), "model: busy"), "a draft is freed while it is in use");
        return true;
    });
    try {
        small->generate({1}, drafted_by(*large, 2), [](const var_edge::Scale& scale) { return scale.index < 1; });
        expect(false, "a callback does not stop the draft");
    } catch (const var_edge::Error& error) {
        expect(error.status == VAR_EDGE_STOPPED, "stopped by a callback");
    }
    expect(same(alone, large->generate({1, 2, 3}, of_seed(3))), "the draft draws something else afterwards");
    Model beside = large->share();
    large->generate({1}, of_seed(3), [&](const var_edge::Scale&) {
        refused("a busy draft", draw(*small, drafted_by(*large, 1)), VAR_EDGE_BAD_ARGUMENT, "draft: busy with another");
        expect(draw(*small, drafted_by(beside, 1)) == VAR_EDGE_OK, "a shared draft");
        return true;
    });
    large.reset();
    expect(same(alone, small->generate({1, 2, 3}, drafted_by(beside, 1))), "without the first handle");
    small.reset();
    expect(same(alone, beside.generate({1, 2, 3}, of_seed(3))), "without the refiner");
}

// Who watches a draft sees all scales, those of one model after those of the other.
void draft_shown(const std::string& directory) {
    Model large(directory, one_thread()), small(directory, one_thread());
    Shown expected;
    small.generate({1}, of_seed(3), [&](const var_edge::Scale& scale) { return expected.add(scale); });
    const std::int32_t scales = small.info().scales;
    expect(expected.indices.size() == std::size_t(scales), "all scales");
    for (std::int32_t count = 1; count <= scales; ++count) {
        Shown shown;
        small.generate({1}, drafted_by(large, count), [&](const var_edge::Scale& scale) { return shown.add(scale); });
        const std::string drafted = " with " + std::to_string(count) + " scales drafted";
        expect(shown.indices == expected.indices, "scales in order" + drafted);
        expect(shown.tokens == expected.tokens && shown.logits == expected.logits, "tokens and logits" + drafted);
        expect(shown.previews == expected.previews, "previews" + drafted);
    }
}

// Two handles draft for each other in two threads: each call is right or refused, and none waits for ever.
void draft_scramble(const std::string& directory) {
    Model first(directory, one_thread()), second(directory, one_thread());
    const Pictures alone = first.generate({1, 2}, of_seed(3));
    std::atomic<int> right{0}, wrong{0};
    const auto draw_often = [&](Model& refiner, Model& large) {
        for (int n = 0; n < 20 || (!right && n < 2000); ++n) {
            try {
                (same(alone, refiner.generate({1, 2}, drafted_by(large, 1))) ? right : wrong) += 1;
            } catch (const var_edge::Error& error) {
                if (error.status != VAR_EDGE_BAD_ARGUMENT) ++wrong;
            }
        }
    };
    std::thread other([&] { draw_often(second, first); });
    draw_often(first, second);
    other.join();
    expect(right > 0 && wrong == 0, std::to_string(wrong) + " wrong, " + std::to_string(right) + " right");
}

// A stop of either handle ends the call, whichever of the two draws.
void draft_stop(const std::string& directory) {
    Model large(directory, one_thread()), small(directory, one_thread());
    const Pictures alone = small.generate({1}, of_seed(3));
    for (Model* stopped : {&small, &large}) {
        for (const auto& [where, at] : std::vector<std::pair<std::string, std::int32_t>>{{"draft condition", -1},
                                                                                         {"draft transformer", 0},
                                                                                         {"draft bridge", 1},
                                                                                         {"transformer", 2},
                                                                                         {"decoder", -1}}) {
            StopAt heard{stopped->get(), where, "", at};
            Settings settings = drafted_by(large, 2);
            settings.on_stage = stop_at;
            settings.user = &heard;
            refused(where, draw(small, settings), VAR_EDGE_STOPPED, "stopped by var_edge_stop");
            expect(heard.heard == where, "stopped at " + where + ", but " + heard.heard + " ran");
        }
        expect(same(alone, small.generate({1}, drafted_by(large, 2))), "after a stop it draws something else");
        expect(same(alone, large.generate({1}, of_seed(3))), "after a stop the draft draws something else");
    }
}

long resident_kilobytes() {
    std::ifstream file("/proc/self/statm");
    long total = 0, resident = 0;
    file >> total >> resident;
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

// A shared handle takes less than a quarter of what another one takes.
void share_memory(const std::string& directory) {
    Model first(directory, one_thread());
    first.generate({1});
    const long start = resident_kilobytes();
    Model shared = first.share();
    shared.generate({1});
    const long middle = resident_kilobytes();
    Model another(directory, one_thread());
    another.generate({1});
    const long end = resident_kilobytes();
    std::cerr << "shared " << middle - start << " kB, another " << end - middle << " kB" << std::endl;
    expect(4 * (middle - start) < end - middle, "memory");
}

}  // namespace

const Features CALLS = {{"busy", busy},
                        {"scramble", scramble},
                        {"fork", fork_child},
                        {"cancel", cancel},
                        {"stop", stop},
                        {"stop_between", stop_between},
                        {"share", share},
                        {"share_memory", share_memory},
                        {"draft", draft},
                        {"draft_shown", draft_shown},
                        {"draft_scramble", draft_scramble},
                        {"draft_stop", draft_stop}};
