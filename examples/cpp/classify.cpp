// Prints the logits of an accelerated model, without Python.
//
//     python -c "import timm, vitfast; vitfast.export(vitfast.accelerate(timm.create_model(
//         'vit_base_patch16_224', pretrained=True).eval(), 'int8'), 'model.pt2', aot=True)"
//     build/classify model.pt2 libvitfast_cpu.so images.bin BATCH CHANNELS HEIGHT WIDTH
//
// images.bin holds float32 in the order [batch, channels, height, width], preprocessed as for the model. The library is
// `python -c "from vitfast.ops.library import library_path; print(library_path('vitfast_cpu'))"`.

#include <ATen/Version.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

using torch::inductor::AOTIModelPackageLoader;

// "2.14.1+cpu" -> "2.14"
static std::string minor_version(const std::string& version) {
  return version.substr(0, version.find('.', 2));
}

static std::string instruction_set() {
  auto schema = c10::Dispatcher::singleton().findSchemaOrThrow("vitfast::cpu_capability", "");
  torch::jit::Stack stack;
  schema.callBoxed(&stack);
  return stack.at(0).toStringRef();
}

// Throws if the package was compiled for another torch or another processor.
static void check_manifest(const std::string& path) {
  const auto manifest = AOTIModelPackageLoader::load_metadata_from_package(path, "model");
  const auto check = [&](const char* name, const std::string& here) {
    const auto found = manifest.find(name);
    const std::string wanted = found == manifest.end() ? "" : found->second;
    if (wanted != here && wanted != "any")
      throw std::runtime_error(
          path + ": " + name + " is '" + wanted + "', and here it is '" + here +
          "'; export the model again on this machine and with this torch");
  };
  const auto torch = manifest.find("vitfast_torch");
  if (torch == manifest.end()) throw std::runtime_error(path + " is not a package of vitfast.export(…, aot=True)");
  if (minor_version(torch->second) != minor_version(TORCH_VERSION)) check("vitfast_torch", TORCH_VERSION);
  check("vitfast_instruction_set", instruction_set());
  check("vitfast_cpu_capability", at::get_cpu_capability());
}

static at::Tensor read_images(const char* path, const std::vector<int64_t>& shape) {
  at::Tensor images = at::empty(shape);
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(images.data_ptr<float>()), images.numel() * sizeof(float));
  if (!file) throw std::runtime_error(std::string(path) + " cannot be read, or is smaller than the shape");
  return images;
}

int main(int count, char** arguments) try {
  if (count != 8) {
    std::fprintf(stderr, "usage: classify MODEL.pt2 LIBRARY.so IMAGES.bin BATCH CHANNELS HEIGHT WIDTH\n");
    return 2;
  }
  // registers vitfast's operators with torch
  if (!dlopen(arguments[2], RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  check_manifest(arguments[1]);
  std::vector<int64_t> shape;
  for (int index = 4; index < 8; ++index) shape.push_back(std::atoll(arguments[index]));

  c10::InferenceMode guard;
  AOTIModelPackageLoader model(arguments[1]);
  const at::Tensor logits = model.run({read_images(arguments[3], shape)}).at(0).contiguous();
  for (int64_t image = 0; image < logits.size(0); ++image) {
    const float* row = logits.data_ptr<float>() + image * logits.size(1);
    for (int64_t index = 0; index < logits.size(1); ++index) std::printf("%.9g ", row[index]);
    std::printf("\n");
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
