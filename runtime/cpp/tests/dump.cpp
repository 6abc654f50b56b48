// dump DIR OUT [TIMES [THREADS [DRAFT]]] < cases: draws each case as its line comes, "label,… seed cfg top_k top_p
// batch smooth guidance_scales draft_scales decoder", and writes tokens (int32), then images (uint8), to OUT ("-":
// standard output). With TIMES each case is drawn so often, and the resident memory in kB goes to standard error after
// a tenth of them and at the end. DRAFT is the bundle of the model that drafts.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>

#include <unistd.h>

#include <var_edge.hpp>

namespace {

struct Case {
    std::vector<std::int32_t> labels;
    var_edge::Settings settings;
};

Case parse(const std::string& line) {
    Case found;
    std::istringstream stream(line);
    std::string labels;
    stream >> labels >> found.settings.seed >> found.settings.cfg >> found.settings.top_k >> found.settings.top_p >>
        found.settings.batch >> found.settings.smooth >> found.settings.guidance_scales >>
        found.settings.draft_scales >> found.settings.decoder;
    std::istringstream list(labels);
    for (std::string label; std::getline(list, label, ',');) found.labels.push_back(std::stoi(label));
    return found;
}

long resident_kilobytes() {
    std::ifstream file("/proc/self/statm");
    long total = 0, resident = 0;
    file >> total >> resident;
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) return 2;
    try {
        const int times = count > 3 ? std::atoi(arguments[3]) : 1;
        var_edge::Options options;
        options.threads = count > 4 ? std::atoi(arguments[4]) : 0;
        var_edge::Model model(arguments[1], options);
        std::unique_ptr<var_edge::Model> draft;
        if (count > 5) draft = std::make_unique<var_edge::Model>(arguments[5], options);
        std::ofstream file;
        const bool to_file = std::string(arguments[2]) != "-";
        if (to_file) file.open(arguments[2], std::ios::binary);
        std::ostream& out = to_file ? file : std::cout;
        for (std::string line; std::getline(std::cin, line);) {
            Case wanted = parse(line);
            if (draft) wanted.settings.draft = draft->get();
            for (int i = 0; i < times; ++i) {
                const var_edge::Pictures pictures = model.generate(wanted.labels, wanted.settings);
                if (times > 1 && (i + 1 == times / 10 || i + 1 == times)) {
                    std::cerr << resident_kilobytes() << std::endl;
                }
                if (i) continue;
                out.write(reinterpret_cast<const char*>(pictures.tokens.data()),
                          std::streamsize(pictures.tokens.size() * 4));
                out.write(reinterpret_cast<const char*>(pictures.images.data()),
                          std::streamsize(pictures.images.size()));
                out.flush();
            }
        }
    } catch (const var_edge::Error& error) {
        std::cerr << error.status << ": " << error.what() << "\n";
        return 1;
    }
}
