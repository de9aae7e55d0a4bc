// What a torch built without CUDA lacks to run fake tensors of device cuda through autograd, autocast
// and DeepSpeed: a guard for the device, and hooks that say that there is one. Nothing is computed.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <map>
#include <mutex>

namespace {

// Pinned memory is ordinary memory that is remembered, so that `is_pinned` tells what asked for it.
struct PinnedMemory final : public c10::Allocator {
  static std::map<const char*, size_t> blocks;
  static std::mutex lock;

  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr memory = c10::GetCPUAllocator()->allocate(bytes);
    std::lock_guard<std::mutex> held(lock);
    void* data = memory.get();
    if (data) blocks[static_cast<const char*>(data)] = bytes;
    auto free_it = [](void* freed) {
      {
        std::lock_guard<std::mutex> held(lock);
        blocks.erase(static_cast<const char*>(freed));
      }
      c10::GetCPUAllocator()->raw_deleter()(freed);
    };
    memory.release_context();
    return {data, data, free_it, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  static bool holds(const void* data) {
    std::lock_guard<std::mutex> held(lock);
    auto after = blocks.upper_bound(static_cast<const char*>(data));
    if (after == blocks.begin()) return false;
    auto block = std::prev(after);
    return static_cast<const char*>(data) < block->first + block->second;
  }
};
std::map<const char*, size_t> PinnedMemory::blocks;
std::mutex PinnedMemory::lock;
PinnedMemory pinned_memory;

const c10::Device ONLY(c10::DeviceType::CUDA, 0);

struct Guard final : public c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Stream main() const { return c10::Stream(c10::Stream::DEFAULT, ONLY); }
  c10::Device getDevice() const override { return ONLY; }
  c10::Device exchangeDevice(c10::Device) const override { return ONLY; }
  c10::Stream getStream(c10::Device) const noexcept override { return main(); }
  c10::Stream getDefaultStream(c10::Device) const override { return main(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return main(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};

}  // namespace

namespace at {

struct CUDAHooks : public CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCuDNN() const override { return true; }
  long versionCuDNN() const override { return 91000; }
  long versionRuntimeCuDNN() const override { return 91000; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  bool isPinnedPtr(const void* data) const override { return PinnedMemory::holds(data); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks);

}  // namespace at

extern "C" void install_guard() {
  static c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, new Guard());
}
