// var_edge_preview DIR LABEL FOLDER [SEED]: writes the picture as it is after each scale, from coarse to fine.
#include <algorithm>
#include <cstdint>
#include <iostream>

#include <var_edge.hpp>

#include "png.hpp"

int main(int count, char** arguments) {
    if (count < 4) {
        std::cerr << "usage: " << arguments[0] << " DIR LABEL FOLDER [SEED]\n";
        return 2;
    }
    try {
        var_edge::Model model(arguments[1]);
        const auto side = std::uint32_t(model.info().image_size);
        var_edge::Settings settings;
        settings.top_k = std::min(settings.top_k, model.info().vocab_size);
        if (count > 4) settings.seed = std::stoull(arguments[4]);
        model.generate({std::stoi(arguments[2])}, settings, [&](const var_edge::Model::Scale& scale) {
            const std::string path = std::string(arguments[3]) + "/scale_" + std::to_string(scale.index) + ".png";
            Png::write(path, scale.preview().data(), side, side);
            std::cout << path << ": " << scale.side << " x " << scale.side << " tokens" << std::endl;
            return true;
        });
    } catch (const std::exception& error) {
        std::cerr << "Error: " << error.what() << "\n";
        return 1;
    }
}
