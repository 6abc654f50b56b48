// What is drawn: settings, labels, seeds, batches, scales, stages, edits.
#include <cmath>
#include <cstdlib>
#include <functional>

#include "features.hpp"

namespace {

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
    const std::string scales = std::to_string(model.info().scales);
    wrong("guidance_scales: expected 0 (all) to " + scales + ", found -1", [](Settings& s) { s.guidance_scales = -1; });
    wrong("guidance_scales: expected 0 (all) to " + scales + ", found 65", [](Settings& s) { s.guidance_scales = 65; });
    wrong("decoder: expected one of var_edge_decoder, found 2", [](Settings& s) { s.decoder = 2; });
    wrong("draft_scales: expected 0 without a draft, found 1", [](Settings& s) { s.draft_scales = 1; });
    wrong("draft: expected another handle", [&](Settings& s) { s.draft = model.get(); });
    Model draft = model.info().batch_count ? Model(directory) : model.share();
    wrong("expected no smooth sampling with a draft", [&](Settings& s) {
        s.draft = draft.get();
        s.draft_scales = s.smooth = 1;
    });
    for (const std::int32_t count : {-1, model.info().scales + 1}) {
        wrong("draft_scales: expected 0 to " + scales + ", found " + std::to_string(count), [&](Settings& s) {
            s.draft = draft.get();
            s.draft_scales = count;
        });
    }
    wrong("top_k: expected", [](Settings& s) { s.top_k = -2; });
    wrong("top_k: expected", [&](Settings& s) { s.top_k = model.info().vocab_size + 1; });
    Settings last;
    last.seed = UINT64_MAX;
    refused("seed", draw(model, last, {1, 2}), VAR_EDGE_BAD_ARGUMENT, "seed: expected");
    std::vector<std::int32_t> many((1 << 20) + 1);
    std::uint8_t image = 0;
    refused("many", var_edge_generate(model.get(), many.data(), std::int32_t(many.size()), nullptr, &image, nullptr),
            VAR_EDGE_BAD_ARGUMENT, "labels: expected 1 to 1048576, found 1048577");
    var_edge::Options options;
    var_edge_model* other = nullptr;
    options.threads = 1025;
    refused("threads", var_edge_create(directory.c_str(), &options, &other), VAR_EDGE_BAD_ARGUMENT, "found 1025");
    // The default clamps to the vocabulary.
    Settings all;
    all.top_k = std::min(900, model.info().vocab_size);
    expect(Settings().top_k == VAR_EDGE_TOP_K_DEFAULT, "default top_k");
    expect(same(model.generate({1}, Settings()), model.generate({1}, all)), "the default is another top_k");
    expect(same(model.generate({1}, Settings()),
                [&] {
                    Pictures drawn = model.generate({1}, all);
                    var_edge_generate(model.get(), std::vector<std::int32_t>{1}.data(), 1, nullptr, drawn.images.data(),
                                      drawn.tokens.data());
                    return drawn;
                }()),
           "NULL settings are others");
}

void labels(const std::string& directory) {
    Model model(directory, one_thread());
    const std::int32_t none = model.info().num_classes;
    for (const auto& [text, label] : std::map<std::string, std::int32_t>{{"0", 0},
                                                                         {"004", 4},
                                                                         {std::to_string(none), none},
                                                                         {"none", none},
                                                                         {" NONE ", none},
                                                                         {"tench", 0},
                                                                         {"Tinca tinca", 0},
                                                                         {"TINCA", 0},
                                                                         {"tench, tinca tinca", 0},
                                                                         {"hoist", 3},
                                                                         {"crane, hoist", 3},
                                                                         {"golden", 4},
                                                                         {"goldfish", 1},
                                                                         {"golden retriever ", 4},
                                                                         {"crane (3)", 3},
                                                                         {"2 crane (2)", 2},
                                                                         {"tench; Tinca tinca", 0},
                                                                         {"0  TENCH; tinca tinca", 0}}) {
        std::int32_t found = -1;
        expect(var_edge_find_label(model.get(), text.c_str(), &found) == VAR_EDGE_OK && found == label,
               text + " gives " + std::to_string(found));
    }
    for (const auto& [text, says] :
         std::map<std::string, std::string>{{"gold", "may be 1 (goldfish), 4 (golden retriever)"},
                                            {"crane", "may be 2 (crane), 3 (crane)"},
                                            {"", "no class"},
                                            {"cat", "no class has this name"},
                                            {"99999999999999999999999", "expected 0 to"},
                                            {"-1", "no class"},
                                            {std::string(5000, '7'), "expected 0 to"}}) {
        std::int32_t found = -1;
        refused(text, var_edge_find_label(model.get(), text.c_str(), &found), VAR_EDGE_BAD_ARGUMENT, says);
        expect(std::strlen(var_edge_last_error()) <= 300, "a long message");
    }
    expect(std::string("Tinca tinca") == var_edge_class_synonym(model.get(), 0, 1) &&
               !var_edge_class_synonym(model.get(), 0, 2),
           "synonyms");
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
        expect(std::equal(alone.tokens.begin(), alone.tokens.end(), drawn.tokens.begin() + std::ptrdiff_t(i * tokens)),
               "seed " + std::to_string(i));
    }
}

// The exact path, bit for bit, if guidance is everywhere; with guidance nowhere but at scale 0, where it is 0, a batch
// has the tokens that pictures have alone.
void guidance(const std::string& directory) {
    Model model(directory, one_thread());
    Settings settings = of_seed(3);
    settings.top_k = 1;  // so that the guidance decides
    const Pictures exact = model.generate({1, 2, 3}, settings);
    settings.guidance_scales = model.info().scales;
    expect(same(exact, model.generate({1, 2, 3}, settings)), "with all scales it is another picture");
    settings.guidance_scales = 1;
    const Pictures drawn = model.generate({1, 2, 3}, settings);
    expect(!same(drawn, exact), "without guidance it is the same picture");
    settings.batch = 2;
    expect(drawn.tokens == model.generate({1, 2, 3}, settings).tokens, "tokens of another batch");
    settings.seed = 5;
    const Pictures last = model.generate({3}, settings);
    expect(std::equal(last.tokens.rbegin(), last.tokens.rend(), drawn.tokens.rbegin()), "tokens alone");
    settings.cfg = 0;
    settings.guidance_scales = 0;
    expect(last.tokens == model.generate({3}, settings).tokens, "with a guidance of 0 it draws something else");
}

// A picture drawn in a batch has exactly the tokens it has alone; its pixels differ by at most 1/255.
void batch(const std::string& directory) {
    Model model(directory, one_thread());
    const std::vector<std::int32_t> labels = {0, 3, model.info().num_classes, 3, 1};
    Settings settings = of_seed(11);
    const Pictures together = model.generate(labels, settings);
    settings.batch = 2;
    const Pictures in_twos = model.generate(labels, settings);
    Pictures alone;
    for (std::size_t i = 0; i < labels.size(); ++i) {
        const Pictures drawn = model.generate({labels[i]}, of_seed(11 + i));
        alone.tokens.insert(alone.tokens.end(), drawn.tokens.begin(), drawn.tokens.end());
        alone.images.insert(alone.images.end(), drawn.images.begin(), drawn.images.end());
    }
    for (const Pictures* batches : {&together, &in_twos}) {
        expect(batches->tokens == alone.tokens, "tokens of a batch");
        int most = 0;
        for (std::size_t i = 0; i < alone.images.size(); ++i) {
            most = std::max(most, std::abs(batches->images[i] - alone.images[i]));
        }
        expect(most <= 1, "pixels of a batch differ by " + std::to_string(most));
    }
}

void stages(const std::string& directory) {
    using Heard = std::vector<std::pair<std::string, std::int32_t>>;
    Model model(directory, one_thread());
    Heard heard, expected = {{"condition", -1}};
    for (std::int32_t k = 0; k < model.info().scales; ++k) {
        expected.insert(expected.end(), {{"transformer", k}, {"bridge", k}});
    }
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

// What somebody may ask for between scales: with guidance at all of them, and at the first one or two.
void scales(const std::string& directory) {
    Model model(directory, one_thread());
    const std::size_t vocab = std::size_t(model.info().vocab_size);
    const bool any = model.info().batch_count == 0;  // engines are built for some of these
    for (const std::int32_t guided : any ? std::vector<std::int32_t>{0, 1, 2} : std::vector<std::int32_t>{0}) {
        Settings settings;
        settings.top_k = 1;
        settings.top_p = 0;
        settings.guidance_scales = guided;
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
        expect(same(drawn, model.generate({1, 2}, settings)), "with a callback it draws something else");
    }
    std::vector<float> logits(1);
    refused("outside", var_edge_scale_logits(model.get(), logits.data()), VAR_EDGE_BAD_ARGUMENT,
            "only within on_scale");
}

// A bundle without and one with an encoder says so, and edits with a mask and a callback.
void edit(const std::string& directory) {
    Model model(directory, one_thread());
    const var_edge_info info = model.info();
    expect(info.can_encode == 1 && info.can_smooth == 0 && info.on_device == 0 && info.batch_count == 0,
           "what it can do");
    const Pictures photo = model.generate({1}, of_seed(3));
    std::vector<std::uint8_t> mask(photo.images.size() / 3);
    std::fill(mask.begin() + std::ptrdiff_t(mask.size() / 2), mask.end(), std::uint8_t(255));
    int scales = 0;
    const Pictures masked =
        model.edit(photo.images, mask, VAR_EDGE_INPAINT, {2}, of_seed(4), [&](const var_edge::Scale& scale) {
            ++scales;
            return scale.preview().size() == photo.images.size();
        });
    const Pictures boxed =
        model.edit(photo.images, std::array<double, 4>{0.5, 0, 1, 1}, VAR_EDGE_INPAINT, {2}, of_seed(4));
    expect(scales == info.scales && same(masked, boxed), "a mask and the box that it is");
    mask.pop_back();
    try {
        model.edit(photo.images, mask, VAR_EDGE_INPAINT, {2});
        expect(false, "a short mask");
    } catch (const std::invalid_argument&) {
    }
}

}  // namespace

const Features DRAWING = {{"values", values}, {"labels", labels}, {"seeds", seeds}, {"batch", batch},
                          {"stages", stages}, {"scales", scales}, {"edit", edit},   {"guidance", guidance}};
