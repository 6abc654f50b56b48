// var_edge_generate DIR LABEL,… [--seed N] [--cfg X] [--top-k N] [--top-p X] [--guidance-scales M]
//                   [--draft DIR --draft-scales N] [--decoder full|tiny] [--backend NAME] [--out PICTURE.png]
//
// Draws one picture for each label, into picture.png or, for several labels, into picture_0.png, picture_1.png, …
#include <iostream>
#include <map>
#include <optional>
#include <sstream>

#include <var_edge.hpp>

#include "png.hpp"

namespace {

const std::map<std::string, var_edge_backend> BACKENDS = {{"auto", VAR_EDGE_AUTO},
                                                          {"onnxruntime", VAR_EDGE_ONNXRUNTIME},
                                                          {"onnxruntime-cuda", VAR_EDGE_ONNXRUNTIME_CUDA},
                                                          {"tensorrt", VAR_EDGE_TENSORRT}};
const std::map<std::string, var_edge_decoder> DECODERS = {{"full", VAR_EDGE_DECODER_FULL},
                                                          {"tiny", VAR_EDGE_DECODER_TINY}};

template <typename T>
T number(const std::string& name, const std::string& text) {
    std::istringstream stream(text);
    T value{};
    if (!(stream >> value) || !stream.eof()) throw std::invalid_argument(name + ": expected a number, found " + text);
    return value;
}

std::vector<std::int32_t> labels(const std::string& text) {
    std::vector<std::int32_t> found;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, ',');) found.push_back(number<std::int32_t>("label", part));
    return found;
}

int run(int count, char** arguments) {
    if (count < 3 || count % 2 == 0) {
        std::cerr << "usage: " << arguments[0] << " DIR LABEL,… [--seed N] [--cfg X] [--top-k N] [--top-p X]"
                  << " [--guidance-scales M] [--draft DIR --draft-scales N] [--decoder full|tiny] [--backend NAME]"
                  << " [--out PICTURE.png]\n";
        return 2;
    }
    var_edge::Options options;
    var_edge::Settings settings;
    std::string out = "picture.png", large;
    for (int i = 3; i < count; i += 2) {
        const std::string name = arguments[i], value = arguments[i + 1];
        if (name == "--seed") settings.seed = number<std::uint64_t>(name, value);
        else if (name == "--cfg") settings.cfg = number<double>(name, value);
        else if (name == "--top-k") settings.top_k = number<std::int32_t>(name, value);
        else if (name == "--top-p") settings.top_p = number<double>(name, value);
        else if (name == "--guidance-scales") settings.guidance_scales = number<std::int32_t>(name, value);
        else if (name == "--draft-scales") settings.draft_scales = number<std::int32_t>(name, value);
        else if (name == "--draft") large = value;
        else if (name == "--decoder" && DECODERS.count(value)) settings.decoder = DECODERS.at(value);
        else if (name == "--backend" && BACKENDS.count(value)) options.backend = BACKENDS.at(value);
        else if (name == "--out") out = value;
        else throw std::invalid_argument("unknown: " + name + " " + value);
    }
    var_edge::Model model(arguments[1], options);
    std::optional<var_edge::Model> draft;
    if (!large.empty()) settings.draft = draft.emplace(large, options).get();
    const var_edge::Pictures pictures = model.generate(labels(arguments[2]), settings);
    for (int i = 0; i < pictures.count; ++i) {
        const std::string number = pictures.count > 1 ? "_" + std::to_string(i) : "";
        const std::string path = out.substr(0, out.rfind('.')) + number + ".png";
        Png::write(path, pictures.image(i), std::uint32_t(pictures.side), std::uint32_t(pictures.side));
        std::cout << path << "\n";
    }
    return 0;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        return run(count, arguments);
    } catch (const std::exception& error) {
        std::cerr << "Error: " << error.what() << "\n";
        return 1;
    }
}
