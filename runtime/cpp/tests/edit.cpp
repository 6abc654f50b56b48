// edit DIR IMAGE OUT y0 x0 y1 x1 inpaint|outpaint LABEL SEED SMOOTH [GUIDANCE_SCALES [DRAFT DRAFT_SCALES]]: edits the
// picture whose bytes IMAGE holds, and writes tokens (int32) and picture (uint8) to OUT. DRAFT draws two pictures
// before, so that it holds memory for them.
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>

#include <var_edge.hpp>

int main(int count, char** arguments) {
    if (count < 12) return 2;
    try {
        var_edge::Model model(arguments[1]);
        std::ifstream file(arguments[2], std::ios::binary);
        const std::vector<std::uint8_t> image{std::istreambuf_iterator<char>(file), {}};
        var_edge::Settings settings;
        settings.seed = std::stoull(arguments[10]);
        settings.smooth = std::stoi(arguments[11]);
        if (count > 12) settings.guidance_scales = std::stoi(arguments[12]);
        std::unique_ptr<var_edge::Model> draft;
        if (count > 14) {
            draft = std::make_unique<var_edge::Model>(arguments[13]);
            draft->generate({0, 0}, {});
            settings.draft = draft->get();
            settings.draft_scales = std::stoi(arguments[14]);
        }
        const std::array<double, 4> box = {std::stod(arguments[4]), std::stod(arguments[5]), std::stod(arguments[6]),
                                           std::stod(arguments[7])};
        const var_edge_mode mode = std::string(arguments[8]) == "inpaint" ? VAR_EDGE_INPAINT : VAR_EDGE_OUTPAINT;
        const var_edge::Pictures drawn = model.edit(image, box, mode, {std::stoi(arguments[9])}, settings);
        std::ofstream out(arguments[3], std::ios::binary);
        out.write(reinterpret_cast<const char*>(drawn.tokens.data()), std::streamsize(drawn.tokens.size() * 4));
        out.write(reinterpret_cast<const char*>(drawn.images.data()), std::streamsize(drawn.images.size()));
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
}
