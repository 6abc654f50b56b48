// features DIR NAME: one feature of the API on a bundle. Prints what is wrong, and returns 0 if nothing is.
#include "features.hpp"

int main(int count, char** arguments) {
    if (count != 3) return 2;
    for (const Features* features : {&CALLS, &DRAWING, &LOADING, &STRUCTS}) {
        const auto found = features->find(arguments[2]);
        if (found == features->end()) continue;
        try {
            found->second(arguments[1]);
        } catch (const std::exception& error) {
            std::cout << error.what() << std::endl;
            return 1;
        }
        return failures != 0;
    }
    return 2;
}
