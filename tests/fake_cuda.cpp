// A device guard that does nothing: with it PyTorch's build for CPUs indexes and traces tensors that seem to be on CUDA.
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
static c10::impl::DeviceGuardImplRegistrar registrar(
    c10::DeviceType::CUDA, new c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>());
}
