// An application in C++: the same as app.c.
#include <var_edge.hpp>

#include <iostream>
#include <string>

int main(int count, char** arguments) {
    if (count != 3) return 2;
    try {
        var_edge::Model model(arguments[1]);
        var_edge::Settings settings;
        settings.top_k = 1;
        for (const auto token : model.generate({std::stoi(arguments[2])}, settings).tokens) std::cout << token << " ";
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
}
