// features DIR NAME: one feature of the API on a bundle. Prints what is wrong, and returns 0 if nothing is.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <fstream>
#include <future>
#include <iostream>
#include <limits>
#include <map>
#include <thread>

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <var_edge.hpp>

namespace {

using var_edge::Model;
using var_edge::Pictures;
using var_edge::Settings;

std::atomic<int> failures{0};

void expect(bool holds, const std::string& what) {
    if (holds) return;
    std::cout << what << "; last error: " << var_edge_last_error() << std::endl;
    ++failures;
}

// The call is refused with this status and a message that says this.
void refused(const std::string& what, var_edge_status found, var_edge_status wanted, const std::string& says) {
    expect(found == wanted && std::strstr(var_edge_last_error(), says.c_str()), what + ": expected \"" + says + "\"");
}

bool same(const Pictures& a, const Pictures& b) { return a.images == b.images && a.tokens == b.tokens; }

// One thread: the thread sanitizer does not see the locks of ONNX Runtime's pool.
var_edge::Options one_thread() {
    var_edge::Options options;
    options.threads = 1;
    return options;
}

Settings of_seed(std::uint64_t seed) {
    Settings settings;
    settings.seed = seed;
    return settings;
}

var_edge_status draw(Model& model, const Settings& settings, std::vector<std::int32_t> labels = {1}) {
    std::vector<std::uint8_t> images(var_edge::picture_bytes(model.info(), std::max<std::size_t>(labels.size(), 1)));
    return var_edge_generate(model.get(), labels.data(), std::int32_t(labels.size()), &settings, images.data(), nullptr);
}

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
        refused(where + " generate", var_edge_generate(model.get(), labels, 4, nullptr, image.data(), nullptr), VAR_EDGE_BAD_ARGUMENT, says);
        refused(where + " edit", var_edge_edit(model.get(), image.data(), box, nullptr, VAR_EDGE_INPAINT, labels, 1, nullptr, image.data(), nullptr),
                VAR_EDGE_BAD_ARGUMENT, says);
        refused(where + " encode", var_edge_encode(model.get(), image.data(), 1, tokens.data()), VAR_EDGE_BAD_ARGUMENT, says);
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
            refused("preview", var_edge_preview(model.get(), image.data()), VAR_EDGE_BAD_ARGUMENT, "only within on_scale, in its thread");
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

void values(const std::string& directory) {
    Model model(directory, one_thread());
    const auto wrong = [&](const std::string& says, const std::function<void(Settings&)>& set) {
        Settings settings;
        set(settings);
        refused(says, draw(model, settings), VAR_EDGE_BAD_ARGUMENT, says);
    };
    wrong("found 1e-50", [](Settings& s) { s.top_p = 1e-50; });
    wrong("found 1e-07", [](Settings& s) { s.top_p = 1e-7; });
    wrong("found 1.5", [](Settings& s) { s.top_p = 1.5; });
    wrong("found nan", [](Settings& s) { s.top_p = std::nan(""); });
    wrong("found 1e+39", [](Settings& s) { s.cfg = 1e39; });
    wrong("found 3.5e+38", [](Settings& s) { s.cfg = 3.5e38; });
    wrong("found inf", [](Settings& s) { s.cfg = HUGE_VAL; });
    wrong("found 1000.5", [](Settings& s) { s.cfg = 1000.5; });
    wrong("found -1", [](Settings& s) { s.cfg = -1; });
    wrong("batch: expected 1 to 1024, found 1025", [](Settings& s) { s.batch = 1025; });
    wrong("top_k: expected", [](Settings& s) { s.top_k = -2; });
    wrong("top_k: expected", [&](Settings& s) { s.top_k = model.info().vocab_size + 1; });
    Settings last;
    last.seed = UINT64_MAX;
    refused("seed", draw(model, last, {1, 2}), VAR_EDGE_BAD_ARGUMENT, "seed: expected");
    std::vector<std::int32_t> many((1 << 20) + 1);
    std::uint8_t image = 0;
    refused("many", var_edge_generate(model.get(), many.data(), std::int32_t(many.size()), nullptr, &image, nullptr), VAR_EDGE_BAD_ARGUMENT,
            "labels: expected 1 to 1048576, found 1048577");
    var_edge::Options options;
    var_edge_model* other = nullptr;
    options.threads = 1025;
    refused("threads", var_edge_create(directory.c_str(), &options, &other), VAR_EDGE_BAD_ARGUMENT, "found 1025");
    // The default clamps to the vocabulary.
    Settings all;
    all.top_k = std::min(900, model.info().vocab_size);
    expect(Settings().top_k == VAR_EDGE_TOP_K_DEFAULT, "default top_k");
    expect(same(model.generate({1}, Settings()), model.generate({1}, all)), "the default is another top_k");
    expect(same(model.generate({1}, Settings()), [&] {
               Pictures drawn = model.generate({1}, all);
               var_edge_generate(model.get(), std::vector<std::int32_t>{1}.data(), 1, nullptr, drawn.images.data(), drawn.tokens.data());
               return drawn;
           }()), "NULL settings are others");
}

void structs(const std::string& directory) {
    struct Newer {
        var_edge_settings known;
        std::uint64_t tail[4];
    } newer{};
    var_edge_init_settings(&newer.known, sizeof newer);
    Model model(directory, one_thread());
    std::vector<std::uint8_t> image(var_edge::picture_bytes(model.info(), 1));
    const std::int32_t label = 1;
    const auto status = [&] { return var_edge_generate(model.get(), &label, 1, &newer.known, image.data(), nullptr); };
    expect(newer.known.struct_size == sizeof newer && status() == VAR_EDGE_OK, "a longer struct with an empty tail");
    newer.tail[3] = 1;
    refused("tail", status(), VAR_EDGE_BAD_ARGUMENT, "sets a field that VAR Edge");
    for (const std::size_t size : {std::size_t(0), std::size_t(3), std::size_t(1) << 40}) {
        newer.known.struct_size = size;
        refused("size", status(), VAR_EDGE_BAD_ARGUMENT, "settings.struct_size: expected");
    }
    struct {
        var_edge_info known;
        std::uint64_t tail;
    } info{};
    info.known.struct_size = sizeof info;
    info.tail = 7;
    expect(var_edge_query(model.get(), &info.known) == VAR_EDGE_OK && info.tail == 0 && info.known.tokens > 0, "a longer info");
    expect(info.known.struct_size == sizeof info, "the size of a longer info");
}

void labels(const std::string& directory) {
    Model model(directory, one_thread());
    const std::int32_t none = model.info().num_classes;
    for (const auto& [text, label] : std::map<std::string, std::int32_t>{
             {"0", 0}, {"004", 4}, {std::to_string(none), none}, {"none", none}, {" NONE ", none}, {"tench", 0}, {"Tinca tinca", 0},
             {"TINCA", 0}, {"tench, tinca tinca", 0}, {"hoist", 3}, {"crane, hoist", 3}, {"golden", 4}, {"goldfish", 1}, {"golden retriever ", 4}, {"crane (3)", 3},
             {"2 crane (2)", 2}, {"tench; Tinca tinca", 0}, {"0  TENCH; tinca tinca", 0}}) {
        std::int32_t found = -1;
        expect(var_edge_find_label(model.get(), text.c_str(), &found) == VAR_EDGE_OK && found == label, text + " gives " + std::to_string(found));
    }
    for (const auto& [text, says] : std::map<std::string, std::string>{
             {"gold", "may be 1 (goldfish), 4 (golden retriever)"}, {"crane", "may be 2 (crane), 3 (crane)"}, {"", "no class"},
             {"cat", "no class has this name"}, {"99999999999999999999999", "expected 0 to"}, {"-1", "no class"}, {std::string(5000, '7'), "expected 0 to"}}) {
        std::int32_t found = -1;
        refused(text, var_edge_find_label(model.get(), text.c_str(), &found), VAR_EDGE_BAD_ARGUMENT, says);
        expect(std::strlen(var_edge_last_error()) <= 300, "a long message");
    }
    expect(std::string("Tinca tinca") == var_edge_class_synonym(model.get(), 0, 1) && !var_edge_class_synonym(model.get(), 0, 2), "synonyms");
}

void seeds(const std::string& directory) {
    Model model(directory, one_thread());
    const std::uint64_t list[3] = {UINT64_MAX, 5, 5};
    Settings settings = of_seed(UINT64_MAX);
    settings.seeds = list;
    settings.batch = 2;
    const Pictures drawn = model.generate({1, 2, 2}, settings);
    const std::size_t tokens = std::size_t(model.info().tokens);
    for (std::size_t i = 0; i < 3; ++i) {
        const Pictures alone = model.generate({i ? 2 : 1}, of_seed(list[i]));
        expect(std::equal(alone.tokens.begin(), alone.tokens.end(), drawn.tokens.begin() + std::ptrdiff_t(i * tokens)), "seed " + std::to_string(i));
    }
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
    for (const auto& [where, at] : std::vector<std::pair<std::string, std::int32_t>>{{"condition", -1}, {"transformer", 1}, {"bridge", 0}, {"bridge", last}}) {
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

void stages(const std::string& directory) {
    using Heard = std::vector<std::pair<std::string, std::int32_t>>;
    Model model(directory, one_thread());
    Heard heard, expected = {{"condition", -1}};
    for (std::int32_t k = 0; k < model.info().scales; ++k) expected.insert(expected.end(), {{"transformer", k}, {"bridge", k}});
    expected.emplace_back("decoder", -1);
    Settings settings;
    settings.on_stage = [](const char* stage, std::int32_t scale, double seconds, void* user) {
        expect(seconds >= 0 && seconds < 3600, "seconds");
        static_cast<Heard*>(user)->emplace_back(stage, scale);
    };
    settings.user = &heard;
    expect(draw(model, settings) == VAR_EDGE_OK && heard == expected, "stages");
    expect(draw(model, Settings()) == VAR_EDGE_OK && heard == expected, "heard by the next call");
}

void scales(const std::string& directory) {
    Model model(directory, one_thread());
    const std::size_t vocab = std::size_t(model.info().vocab_size);
    Settings settings;
    settings.top_k = 1;
    settings.top_p = 0;
    std::vector<std::vector<std::int32_t>> rows(2);
    const Pictures drawn = model.generate({1, 2}, settings, [&](const var_edge::Scale& scale) {
        const std::vector<std::int32_t> tokens = scale.tokens();
        const std::vector<float> logits = scale.logits();
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            const auto row = logits.begin() + std::ptrdiff_t(i * vocab);
            const auto best = std::max_element(row, row + std::ptrdiff_t(vocab));
            expect(*best - row[tokens[i]] <= 1e-4f, "a token that is not the most probable one");
            rows[i / (tokens.size() / 2)].push_back(tokens[i]);
        }
        return true;
    });
    rows[0].insert(rows[0].end(), rows[1].begin(), rows[1].end());
    expect(rows[0] == drawn.tokens, "tokens of the scales");
    std::vector<float> logits(1);
    refused("outside", var_edge_scale_logits(model.get(), logits.data()), VAR_EDGE_BAD_ARGUMENT, "only within on_scale");
}

struct Loading {
    std::uint64_t done[2] = {}, total[2] = {};
    int calls = 0, stop_after = std::numeric_limits<int>::max();
};

void progress(const std::string& directory) {
    Loading loading;
    var_edge::Options options;
    options.on_progress = [](const var_edge_progress* progress, void* user) {
        auto& self = *static_cast<Loading*>(user);
        expect(progress->done >= self.done[progress->stage] && progress->done <= progress->total && *progress->name, "progress");
        self.done[progress->stage] = progress->done;
        self.total[progress->stage] = progress->total;
        return int(++self.calls > self.stop_after);
    };
    options.progress_user = &loading;
    Model model(directory, options);
    for (const int stage : {VAR_EDGE_CHECKING, VAR_EDGE_LOADING}) expect(loading.total[stage] > 0 && loading.done[stage] == loading.total[stage], "all of it");
    const int calls = loading.calls;
    for (const int after : {0, calls - 1}) {
        loading = Loading();
        loading.stop_after = after;
        var_edge_model* other = model.get();
        refused("stop", var_edge_create(directory.c_str(), &options, &other), VAR_EDGE_STOPPED, "stopped by on_progress");
        expect(!other, "a handle of a stopped create");
    }
    loading = Loading();
    options.verify = 0;
    Model unverified(directory, options);
    expect(loading.total[VAR_EDGE_CHECKING] == 0 && loading.done[VAR_EDGE_LOADING] > 0, "without verifying");
}

void memory(const std::string& directory) {
    const auto use = [&](std::int32_t batch) {
        var_edge_memory_use found{};
        found.struct_size = sizeof found;
        expect(var_edge_memory(directory.c_str(), batch, 0, &found) == VAR_EDGE_OK, "memory");
        return found;
    };
    const var_edge_memory_use one = use(1), eight = use(8), large = use(1024);
    expect(one.weights > 0 && one.weights == large.weights, "weights");
    expect(one.batch > 0 && eight.batch > one.batch && eight.batch <= 8 * one.batch, "a batch");
    expect(large.batch > 100 * eight.batch && large.batch < 128 * eight.batch + 1, "a large batch");
    Model model(directory, one_thread());
    expect(one.noise == std::uint64_t(model.info().tokens) * 4, "random numbers");
    var_edge_memory_use found{};
    found.struct_size = sizeof found;
    refused("batch", var_edge_memory(directory.c_str(), 0, 0, &found), VAR_EDGE_BAD_ARGUMENT, "batch: expected 1 to 1024");
    refused("smooth", var_edge_memory(directory.c_str(), 1, 1, &found), VAR_EDGE_BAD_BUNDLE, "smooth");
}

struct Heard {
    std::atomic<int> engine{0}, library{0};
};

void log(const std::string& directory) {
    for (const int level : {int(VAR_EDGE_LOG_VERBOSE), int(VAR_EDGE_LOG_NONE)}) {
        Heard heard;
        var_edge::Options options;
        options.log_level = level;
        options.log_user = &heard;
        options.log = [](int of, const char* message, void* user) {
            auto& self = *static_cast<Heard*>(user);
            const bool engine = std::strncmp(message, "ONNX Runtime: ", 14) == 0;
            expect(!std::strchr(message, '\n') && of >= VAR_EDGE_LOG_VERBOSE && of <= VAR_EDGE_LOG_ERROR, message);
            (engine ? self.engine : self.library) += 1;
        };
        Model model(directory, options);
        model.generate({1});
        expect(heard.library > 0 && (heard.engine > 0) == (level == VAR_EDGE_LOG_VERBOSE), "messages: " + std::to_string(heard.engine));
    }
}

void provider(const std::string& directory) {
    const auto wrong = [&](const std::string& says, var_edge_status status, const std::function<void(var_edge::Options&)>& set) {
        var_edge::Options options;
        set(options);
        var_edge_model* model = nullptr;
        refused(says, var_edge_create(directory.c_str(), &options, &model), status, says);
    };
    static const char* pair[] = {"gpu_mem_limit", "1000", nullptr};
    static const char* half[] = {"gpu_mem_limit", nullptr};
    wrong("no execution provider", VAR_EDGE_BAD_ARGUMENT, [](var_edge::Options& o) { o.provider_options = pair; });
    wrong("expected a value after \"gpu_mem_limit\"", VAR_EDGE_BAD_ARGUMENT, [](var_edge::Options& o) {
        o.provider_options = half;
        o.backend = VAR_EDGE_ONNXRUNTIME_CUDA;
    });
    wrong("CUDAExecutionProvider", VAR_EDGE_UNSUPPORTED, [](var_edge::Options& o) {
        o.provider_options = pair;
        o.backend = VAR_EDGE_ONNXRUNTIME_CUDA;
        o.device = 1;
    });
    wrong("device: expected", VAR_EDGE_BAD_ARGUMENT, [](var_edge::Options& o) { o.device = -2; });
    wrong("log_level: expected", VAR_EDGE_BAD_ARGUMENT, [](var_edge::Options& o) { o.log_level = 4; });
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

void version(const std::string&) {
    const std::string found = var_edge_version();
    const std::string header = std::to_string(VAR_EDGE_VERSION_MAJOR) + "." + std::to_string(VAR_EDGE_VERSION_MINOR) + "." +
                               std::to_string(VAR_EDGE_VERSION_PATCH);
    expect(found == header, found + " beside " + header);
    expect(std::strstr(var_edge_build(), found.c_str()) && std::strstr(var_edge_build(), "commit "), "build");
    for (int status = 0; status <= 6; ++status) expect(std::strcmp(var_edge_status_string(var_edge_status(status)), "unknown status"), "a status");
    expect(!std::strcmp(var_edge_status_string(VAR_EDGE_STOPPED), "stopped"), "stopped");
    expect(!std::strcmp(var_edge_status_string(static_cast<var_edge_status>(7)), "unknown status"), "no status");
}

// A bundle without and one with an encoder says so, and edits with a mask and a callback.
void edit(const std::string& directory) {
    Model model(directory, one_thread());
    const var_edge_info info = model.info();
    expect(info.can_encode == 1 && info.can_smooth == 0 && info.on_device == 0 && info.batch_count == 0, "what it can do");
    const Pictures photo = model.generate({1}, of_seed(3));
    std::vector<std::uint8_t> mask(photo.images.size() / 3);
    std::fill(mask.begin() + std::ptrdiff_t(mask.size() / 2), mask.end(), std::uint8_t(255));
    int scales = 0;
    const Pictures masked = model.edit(photo.images, mask, VAR_EDGE_INPAINT, {2}, of_seed(4), [&](const var_edge::Scale& scale) {
        ++scales;
        return scale.preview().size() == photo.images.size();
    });
    const Pictures boxed = model.edit(photo.images, std::array<double, 4>{0.5, 0, 1, 1}, VAR_EDGE_INPAINT, {2}, of_seed(4));
    expect(scales == info.scales && same(masked, boxed), "a mask and the box that it is");
    mask.pop_back();
    try {
        model.edit(photo.images, mask, VAR_EDGE_INPAINT, {2});
        expect(false, "a short mask");
    } catch (const std::invalid_argument&) {
    }
}

const std::map<std::string, void (*)(const std::string&)> FEATURES = {
    {"busy", busy}, {"scramble", scramble}, {"fork", fork_child}, {"cancel", cancel}, {"values", values}, {"structs", structs},
    {"labels", labels}, {"seeds", seeds}, {"stop", stop}, {"stages", stages}, {"scales", scales}, {"progress", progress},
    {"memory", memory}, {"log", log}, {"provider", provider}, {"share", share}, {"share_memory", share_memory}, {"version", version},
    {"edit", edit}};

}  // namespace

int main(int count, char** arguments) {
    if (count != 3 || !FEATURES.count(arguments[2])) return 2;
    try {
        FEATURES.at(arguments[2])(arguments[1]);
    } catch (const std::exception& error) {
        std::cout << error.what() << std::endl;
        return 1;
    }
    return failures != 0;
}
