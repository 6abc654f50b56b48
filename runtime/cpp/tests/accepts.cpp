// accepts < directories: for each line, a directory, what the readers say to its manifest, class list, weight file and
// record of engines: "accepted" or the error.
#include <filesystem>
#include <iostream>
#include <string>

#include "bundle/classes.hpp"
#include "bundle/engine_record.hpp"
#include "bundle/manifest.hpp"
#include "bundle/weight_file.hpp"
#include "errors.hpp"
#include "files/fingerprint.hpp"

using namespace var_edge_impl;

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        const std::filesystem::path folder = line;
        try {
            const Manifest manifest = Manifest::load(folder, false);
            load_classes(folder, manifest);
            const WeightFile weights(folder / WEIGHTS);
            if (std::filesystem::exists(folder / ENGINE_RECORD)) EngineRecord::load(folder);
            std::cout << "accepted" << std::endl;
        } catch (const Error& error) {
            std::cout << error.status << " " << error.what() << std::endl;
        }
    }
}
