// var_edge_edit DIR PICTURE.ppm Y0,X0,Y1,X1 LABEL OUT.png [SEED]: draws a box of a picture anew.
//
// The picture must have the model's size. The box is given as fractions of height and width: 0,0.5,1,1 is the right
// half. ImageMagick writes PPM files: convert photo.png -resize 256x256! picture.ppm
#include <array>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include <var_edge.hpp>

#include "png.hpp"

namespace {

// Reads (side, side, 3) bytes from a binary PPM file.
std::vector<std::uint8_t> read_ppm(const std::string& path, std::int32_t side) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    std::int32_t width = 0, height = 0, largest = 0;
    file >> magic >> width >> height >> largest;
    file.get();  // one white space
    std::vector<std::uint8_t> rgb(std::size_t(side) * std::size_t(side) * 3);
    if (!file || magic != "P6" || width != side || height != side || largest != 255 ||
        !file.read(reinterpret_cast<char*>(rgb.data()), std::streamsize(rgb.size()))) {
        throw std::runtime_error(path + ": expected a PPM file (P6) of " + std::to_string(side) + " x " +
                                 std::to_string(side) + " pixels");
    }
    return rgb;
}

// Parses "y0,x0,y1,x1".
std::array<double, 4> box(const std::string& text) {
    std::array<double, 4> edges{};
    std::istringstream stream(text);
    char comma = ',';
    for (double& edge : edges) {
        if (comma != ',' || !(stream >> edge)) throw std::invalid_argument("box: expected Y0,X0,Y1,X1, found " + text);
        stream >> comma;
    }
    return edges;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 6) {
        std::cerr << "usage: " << arguments[0] << " DIR PICTURE.ppm Y0,X0,Y1,X1 LABEL OUT.png [SEED]\n";
        return 2;
    }
    try {
        var_edge::Model model(arguments[1]);
        const auto picture = read_ppm(arguments[2], model.info().image_size);
        var_edge::Settings settings;
        if (count > 6) settings.seed = std::stoull(arguments[6]);
        const auto edited =
            model.edit(picture, box(arguments[3]), VAR_EDGE_INPAINT, {std::stoi(arguments[4])}, settings);
        Png::write(arguments[5], edited.image(0), std::uint32_t(edited.side), std::uint32_t(edited.side));
    } catch (const std::exception& error) {
        std::cerr << "Error: " << error.what() << "\n";
        return 1;
    }
}
