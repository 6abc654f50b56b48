// var_edge_batch DIR COUNT FOLDER [SEED]: draws COUNT pictures of every class, for an evaluation.
//
// Writes FOLDER/LABEL_SEED.png. Every picture has a seed of its own, so each can be drawn again by itself.
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include <var_edge.hpp>

#include "png.hpp"

int main(int count, char** arguments) {
    if (count < 4) {
        std::cerr << "usage: " << arguments[0] << " DIR COUNT FOLDER [SEED]\n";
        return 2;
    }
    try {
        var_edge::Model model(arguments[1]);
        var_edge::Settings settings;  // settings.batch: how many are drawn together
        if (count > 4) settings.seed = std::stoull(arguments[4]);
        const auto each = std::stoul(arguments[2]);
        for (std::int32_t label = 0; label < model.info().num_classes; ++label) {
            const auto pictures = model.generate(std::vector<std::int32_t>(each, label), settings);
            for (std::int32_t i = 0; i < pictures.count; ++i) {
                const std::string name = std::to_string(label) + "_" + std::to_string(settings.seed + std::uint64_t(i));
                const auto side = std::uint32_t(pictures.side);
                Png::write(std::string(arguments[3]) + "/" + name + ".png", pictures.image(i), side, side);
            }
            std::cout << label << " " << model.class_name(label) << ": " << pictures.count << " pictures" << std::endl;
            settings.seed += each;
        }
    } catch (const std::exception& error) {
        std::cerr << "Error: " << error.what() << "\n";
        return 1;
    }
}
