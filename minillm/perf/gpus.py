"""The table of GPUs, figures as their vendor prints them, dense (half of what is printed "with sparsity").

NVLink is printed as the sum of both directions, PCI Express likewise; `link_bytes_per_s` is one direction, half of it.
A card's optional NVLink bridge joins two cards only and is left out. Tensor peaks with fp32 accumulation.
"""

from __future__ import annotations

from minillm.perf.hardware import GIB, Hardware, Peaks, Source

KIB, MIB, TERA, GIGA = 2**10, 2**20, 1e12, 1e9

_CUDA_GUIDE = Source(
    "shared memory of an SM, by compute capability (8.0: 164 KB, 8.6 and 8.9: 100 KB, 9.0: 228 KB)",
    "CUDA C++ Programming Guide, Technical Specifications per Compute Capability",
    "https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications",
)

A10 = Hardware(
    "A10 24GB",
    Peaks(fp32=31.2 * TERA, tf32=62.5 * TERA, fp16=125 * TERA, bf16=125 * TERA, int8=250 * TERA),
    bytes_per_s=600 * GIGA,
    memory_bytes=24 * GIB,
    num_sms=72,
    num_cores=9216,
    clock_hz=1.695 * GIGA,
    shared_memory_bytes=100 * KIB,
    l2_bytes=6 * MIB,
    link_bytes_per_s=32 * GIGA,
    sources=(
        Source(
            "peaks, bandwidth, memory, PCI Express Gen4 64 GB/s",
            "NVIDIA A10 Tensor Core GPU, datasheet",
            "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/datasheet-new/nvidia-a10-datasheet.pdf",
        ),
        Source(
            "72 SMs, 9216 cores, 1695 MHz, L2 6 MB",
            "sysrqmts.com, NVIDIA A10 PCIe (GA102)",
            "https://sysrqmts.com/vi/gpus/compare/nvidia-a10-pcie-vs-nvidia-a2",
        ),
        _CUDA_GUIDE,
    ),
)

_A100_PEAKS = Peaks(fp32=19.5 * TERA, tf32=156 * TERA, fp16=312 * TERA, bf16=312 * TERA, int8=624 * TERA)
_A100_SOURCES = (
    Source(
        "peaks, bandwidth, memory, NVLink 600 GB/s, PCI Express Gen4 64 GB/s",
        "NVIDIA A100 Tensor Core GPU, datasheet",
        "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
    ),
    Source(
        "SMs, cores, clock, L2 (40 MB, read at 5120 bytes a clock)",
        "NVIDIA A100 Tensor Core GPU Architecture, whitepaper, tables 4 and 5 and the section on the L2 cache",
        "https://images.nvidia.com/aem-dam/en-zz/Solutions/data-center/nvidia-ampere-architecture-whitepaper.pdf",
    ),
    _CUDA_GUIDE,
)


def _a100(form: str, memory_gib: int, bytes_per_s: float) -> Hardware:
    return Hardware(
        f"A100 {form} {memory_gib}GB",
        _A100_PEAKS,
        bytes_per_s=bytes_per_s,
        memory_bytes=memory_gib * GIB,
        num_sms=108,
        num_cores=6912,
        clock_hz=1.41 * GIGA,
        shared_memory_bytes=164 * KIB,
        l2_bytes=40 * MIB,
        l2_bytes_per_s=5120 * 1.41 * GIGA,
        link_bytes_per_s=(300 if form == "SXM" else 32) * GIGA,
        sources=_A100_SOURCES,
    )


A100_SXM_80GB = _a100("SXM", 80, 2039 * GIGA)
A100_SXM_40GB = _a100("SXM", 40, 1555 * GIGA)
A100_PCIE_80GB = _a100("PCIe", 80, 1935 * GIGA)
A100_PCIE_40GB = _a100("PCIe", 40, 1555 * GIGA)

_HOPPER_PEAKS = Peaks(
    fp32=66.9 * TERA, tf32=494.7 * TERA, fp16=989.4 * TERA, bf16=989.4 * TERA, fp8=1978.9 * TERA, int8=1978.9 * TERA
)
_HOPPER_SOURCES = (
    Source(
        "peaks, bandwidth, memory, NVLink 900 GB/s, PCI Express Gen5 128 GB/s",
        "NVIDIA H100 Tensor Core GPU, product page and datasheet",
        "https://www.nvidia.com/en-us/data-center/h100/",
    ),
    Source(
        "SMs, cores, L2 50 MB",
        "NVIDIA H100 Tensor Core GPU Architecture, whitepaper, table 3",
        "https://resources.nvidia.com/en-us-tensor-core/gtc22-whitepaper-hopper",
    ),
    Source(
        "peaks of the SXM module to one decimal and the clock they hold at (1.83 and 1.98 GHz)",
        "G. K. Lockwood, H100, after NVIDIA's tables",
        "https://glennklockwood.com/garden/processors/h100",
    ),
    _CUDA_GUIDE,
)

H100_SXM = Hardware(
    "H100 SXM 80GB",
    _HOPPER_PEAKS,
    bytes_per_s=3350 * GIGA,
    memory_bytes=80 * GIB,
    num_sms=132,
    num_cores=16896,
    clock_hz=1.98 * GIGA,
    shared_memory_bytes=228 * KIB,
    l2_bytes=50 * MIB,
    link_bytes_per_s=450 * GIGA,
    sources=_HOPPER_SOURCES,
)

H100_PCIE = Hardware(
    "H100 PCIe 80GB",
    # The datasheet's, rounded, and halved from "with sparsity": 756 | 1,513 | 3,026 TFLOPS.
    Peaks(fp32=51 * TERA, tf32=378 * TERA, fp16=756.5 * TERA, bf16=756.5 * TERA, fp8=1513 * TERA, int8=1513 * TERA),
    bytes_per_s=2000 * GIGA,
    memory_bytes=80 * GIB,
    num_sms=114,
    num_cores=14592,
    clock_hz=1.755 * GIGA,
    shared_memory_bytes=228 * KIB,
    l2_bytes=50 * MIB,
    link_bytes_per_s=64 * GIGA,
    sources=_HOPPER_SOURCES,
)

H200_SXM = Hardware(
    "H200 SXM 141GB",
    _HOPPER_PEAKS,
    bytes_per_s=4800 * GIGA,
    memory_bytes=141 * GIB,
    num_sms=132,
    num_cores=16896,
    clock_hz=1.98 * GIGA,
    shared_memory_bytes=228 * KIB,
    l2_bytes=50 * MIB,
    link_bytes_per_s=450 * GIGA,
    sources=(
        Source(
            "bandwidth, memory, NVLink 900 GB/s; compute as the H100's",
            "NVIDIA H200 Tensor Core GPU, product page",
            "https://www.nvidia.com/en-us/data-center/h200/",
        ),
        *_HOPPER_SOURCES[1:],
    ),
)

RTX_4090 = Hardware(
    "RTX 4090 24GB",
    Peaks(
        fp32=82.6 * TERA, tf32=82.6 * TERA, fp16=165.2 * TERA, bf16=165.2 * TERA, fp8=330.3 * TERA, int8=660.6 * TERA
    ),
    bytes_per_s=1008 * GIGA,
    memory_bytes=24 * GIB,
    num_sms=128,
    num_cores=16384,
    clock_hz=2.52 * GIGA,
    shared_memory_bytes=100 * KIB,
    l2_bytes=72 * MIB,
    link_bytes_per_s=32 * GIGA,
    sources=(
        Source(
            "peaks, bandwidth, memory, SMs, cores, clock, L2; PCI Express Gen4",
            "NVIDIA Ada GPU Architecture, whitepaper, appendix A",
            "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
        ),
        _CUDA_GUIDE,
    ),
)

L4 = Hardware(
    "L4 24GB",
    Peaks(fp32=30.3 * TERA, tf32=60 * TERA, fp16=121 * TERA, bf16=121 * TERA, fp8=242.5 * TERA, int8=242.5 * TERA),
    bytes_per_s=300 * GIGA,
    memory_bytes=24 * GIB,
    num_sms=58,
    num_cores=7424,
    clock_hz=2.04 * GIGA,
    shared_memory_bytes=100 * KIB,
    l2_bytes=48 * MIB,
    link_bytes_per_s=32 * GIGA,
    sources=(
        Source(
            "peaks, bandwidth, memory, PCI Express Gen4 64 GB/s",
            "NVIDIA L4 Tensor Core GPU, product page",
            "https://www.nvidia.com/en-us/data-center/l4/",
        ),
        Source(
            "SMs, cores, clock, L2",
            "NVIDIA Ada GPU Architecture, whitepaper v2.1, with the L4",
            "https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf",
        ),
        _CUDA_GUIDE,
    ),
)

GPUS = (
    A10, A100_SXM_80GB, A100_SXM_40GB, A100_PCIE_80GB, A100_PCIE_40GB, H100_SXM, H100_PCIE, H200_SXM, RTX_4090, L4,
)  # fmt: skip
"""By name, the usual variant of a model first."""
