// var_edge_stop DIR LABEL MILLISECONDS OUT.png: draws as many scales as the time allows.
//
// When the time is up, the callback keeps the picture as it is after the current scale and stops the generation.
#include <chrono>
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include <var_edge.hpp>

#include "png.hpp"

int main(int count, char** arguments) {
    if (count != 5) {
        std::cerr << "usage: " << arguments[0] << " DIR LABEL MILLISECONDS OUT.png\n";
        return 2;
    }
    try {
        var_edge::Model model(arguments[1]);
        const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(std::stoi(arguments[3]));
        std::vector<std::uint8_t> image;
        const auto on_scale = [&](const var_edge::Scale& scale) {
            if (std::chrono::steady_clock::now() < end) return true;
            image = scale.preview();
            std::cout << "stopped after scale " << scale.index + 1 << " of " << scale.count << std::endl;
            return false;
        };
        try {
            image = model.generate({std::stoi(arguments[2])}, {}, on_scale).images;
        } catch (const var_edge::Error& error) {
            if (error.status != VAR_EDGE_STOPPED) throw;
        }
        const auto side = std::uint32_t(model.info().image_size);
        Png::write(arguments[4], image.data(), side, side);
    } catch (const std::exception& error) {
        std::cerr << "Error: " << error.what() << "\n";
        return 1;
    }
}
