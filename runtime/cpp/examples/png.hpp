// Writes uncompressed PNG files, so that the examples need no other library.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

class Png {
  public:
    // Writes `rgb` (height, width, 3) bytes. Throws std::runtime_error.
    static void write(const std::string& path, const std::uint8_t* rgb, std::uint32_t width, std::uint32_t height) {
        Bytes header, data = {0x78, 0x01};  // a zlib stream of stored blocks
        number(header, width);
        number(header, height);
        header.insert(header.end(), {8, 2, 0, 0, 0});  // 8 bits, RGB
        const std::size_t row = std::size_t(width) * 3 + 1;
        std::uint32_t a = 1, b = 0;  // Adler-32
        for (std::uint32_t y = 0; y < height; ++y) {
            // One block a row: rows of up to 65535 bytes.
            data.insert(data.end(), {std::uint8_t(y + 1 == height), std::uint8_t(row), std::uint8_t(row >> 8),
                                     std::uint8_t(~row), std::uint8_t(~row >> 8), 0});
            data.insert(data.end(), rgb + y * (row - 1), rgb + (y + 1) * (row - 1));
            for (std::size_t i = data.size() - row; i < data.size(); ++i) {
                a = (a + data[i]) % 65521;
                b = (b + a) % 65521;
            }
        }
        number(data, b << 16 | a);
        std::FILE* file = std::fopen(path.c_str(), "wb");
        if (!file) throw std::runtime_error(path + ": cannot be written");
        std::fwrite("\x89PNG\r\n\x1a\n", 1, 8, file);
        chunk(file, "IHDR", header);
        chunk(file, "IDAT", data);
        chunk(file, "IEND", {});
        const bool bad = std::ferror(file);
        if (std::fclose(file) || bad) throw std::runtime_error(path + ": cannot be written");
    }

  private:
    using Bytes = std::vector<std::uint8_t>;

    static void number(Bytes& out, std::uint32_t value) {
        for (int shift = 24; shift >= 0; shift -= 8) out.push_back(std::uint8_t(value >> shift));
    }

    static void chunk(std::FILE* file, const char* type, const Bytes& data) {
        Bytes out;
        number(out, std::uint32_t(data.size()));
        out.insert(out.end(), type, type + 4);
        out.insert(out.end(), data.begin(), data.end());
        std::uint32_t crc = ~0u;
        for (std::size_t i = 4; i < out.size(); ++i) {
            crc ^= out[i];
            for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        }
        number(out, ~crc);
        std::fwrite(out.data(), 1, out.size(), file);
    }
};
