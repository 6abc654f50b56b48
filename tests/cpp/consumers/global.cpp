// A model that is loaded before main, when the library's own globals may not exist yet: $BUNDLE, then as app.c.
#include <var_edge.hpp>

#include <cstdlib>
#include <iostream>
#include <string>

namespace {
var_edge::Model model(std::getenv("BUNDLE"));
}

int main(int count, char** arguments) {
    if (count != 2) return 2;
    var_edge::Settings settings;
    settings.top_k = 1;
    for (const auto token : model.generate({std::stoi(arguments[1])}, settings).tokens) std::cout << token << " ";
}
