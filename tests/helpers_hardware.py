"""Pictures of machines with GPUs, for tests: a tree in the place of sysfs, and recorded outputs in the place of tools.

Where the recordings come from (shortened; numbers that name a device are replaced):

- NVIDIA_SMI: the columns of `nvidia-smi --help-query-gpu`; spellings of what is missing from enkore/i3pystatus #776 and
  #850, of sizes from public bug reports.
- NVIDIA_SMI_MIG: the form of `nvidia-smi -L` in NVIDIA's MIG user guide; the cards of NVIDIA/mig-parted #31.
- TOPOLOGY_NVLINK: pytorch/pytorch #106190, TOPOLOGY_PCI: kubernetes/kubernetes #53497; four cards of eight in both.
- ROCM_SMI: marimo-team/marimo #9237. ROCM_SMI_TWO: mudler/LocalAI #7761, as JSON. ROCM_SMI_OLD: a fixture of
  bacalhau-project/bacalhau.
- SYSTEM_PROFILER: timmo001/system-bridge #3408. SYSTEM_PROFILER_INTEL: the keys of an Intel Mac with an AMD card, as
  several public parsers of this output test them.
- XPU_SMI and XPU_SMI_DETAILS: intel/xpumanager #127 and its documentation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from infernet.hardware.contract import Card
from infernet.hardware.machine import Machine

NVIDIA_SMI: Final = b"""\
0, NVIDIA GeForce RTX 4090, 24564, 1021, 37, 56, 228.82, 550.54.14, GPU-0, 00000000:01:00.0
1, NVIDIA GeForce RTX 3090, 24576, 0, [N/A], 44, [Not Supported], 550.54.14, GPU-1, 00000000:0B:00.0
"""
# The form of the table that NVIDIA's own documentation of `nvidia-smi` shows; the columns below it are left out.
NVIDIA_SMI_HEADING: Final = b"""\
Sun Nov 29 12:00:00 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.54.14              Driver Version: 550.54.14      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
"""
NVIDIA_SMI_LOST: Final = b"""\
0, NVIDIA GeForce RTX 3090, 24576, 3, 0, 44, 21.10, 550.54.14, GPU-1, 00000000:01:00.0
1, [Unknown Error], [GPU requires reset], [GPU requires reset], [N/A], [N/A], [N/A], 550.54.14, [N/A], 00000000:0B:00.0
"""
NVIDIA_SMI_FAILED: Final = (
    b"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    b"Make sure that the latest NVIDIA driver is installed and running.\n"
)
NVIDIA_SMI_TWO_A100: Final = b"""\
0, NVIDIA A100-SXM4-80GB, 81920, 87, [N/A], 26, 51.00, 545.23.08, GPU-0, 00000000:01:00.0
1, NVIDIA A100-SXM4-80GB, 81920, 87, 0, 26, 50.00, 545.23.08, GPU-1, 00000000:41:00.0
"""
NVIDIA_SMI_MIG: Final = b"""\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-0)
  MIG 3g.40gb     Device  0: (UUID: MIG-10)
  MIG 1g.10gb     Device  1: (UUID: MIG-11)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-1)
"""
TOPOLOGY_NVLINK: Final = b"""\
        GPU0    GPU1    GPU2    GPU3    NIC0    NIC1    CPU Affinity    NUMA Affinity
GPU0     X      NV8     NV8     NV8     NODE    SYS     0-47,96-143     0
GPU1    NV8      X      NV8     NV8     NODE    SYS     0-47,96-143     0
GPU2    NV8     NV8      X      NV8     NODE    SYS     0-47,96-143     0
GPU3    NV8     NV8     NV8      X      NODE    SYS     0-47,96-143     0
NIC0    NODE    NODE    NODE    NODE     X      SYS
NIC1    SYS     SYS     SYS     SYS     SYS      X

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks
"""
TOPOLOGY_PCI: Final = b"""\
        GPU0    GPU1    GPU2    GPU3    mlx4_0  CPU Affinity
GPU0     X      PIX     PHB     PHB     PHB     0-9,20-29
GPU1    PIX      X      PHB     PHB     PHB     0-9,20-29
GPU2    PHB     PHB      X      PIX     PHB     0-9,20-29
GPU3    PHB     PHB     PIX      X      PHB     0-9,20-29
"""
ROCM_SMI: Final = b"""{
  "card0": {
    "GPU use (%)": "0",
    "VRAM Total Memory (B)": "21458059264",
    "VRAM Total Used Memory (B)": "27856896",
    "Card Series": "Radeon RX 7900 XT",
    "Card Model": "0x744c",
    "Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI]",
    "GUID": "26967",
    "GFX Version": "gfx1100"
  }
}"""
ROCM_SMI_TWO: Final = b"""WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status

{"card0": {"VRAM Total Memory (B)": "17163091968", "VRAM Total Used Memory (B)": "692142080",
 "Card Series": "Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]", "Card Model": "0x73bf", "GFX Version": "gfx1030"},
 "card1": {"VRAM Total Memory (B)": "67108864", "VRAM Total Used Memory (B)": "26079232",
 "Card Series": "Raphael", "Card Model": "0x164e", "GFX Version": "gfx1036"}}"""
ROCM_SMI_OLD: Final = b"""{"card0": {"PCI Bus": "0000:E7:00.0", "VRAM Total Memory (B)": "68702699520",
 "VRAM Total Used Memory (B)": "10960896", "Card series": "Instinct MI210", "Card model": "0x0c34",
 "Average Graphics Package Power (W)": "41.0", "Temperature (Sensor edge) (C)": "37.0"},
 "system": {"Driver version": "6.3.6"}}"""
ROCM_TOPOLOGY: Final = b"""{"system": {"(Topology) Link type between DRM devices 0 and 1": "XGMI",
 "(Topology) Link type between DRM devices 0 and 2": "PCIE",
 "(Topology) Link type between DRM devices 1 and 2": "XGMI"}}"""
SYSTEM_PROFILER: Final = b"""{
  "SPDisplaysDataType" : [
    {
      "_name" : "Apple M3 Pro",
      "spdisplays_mtlgpufamilysupport" : "spdisplays_metal3",
      "spdisplays_ndrvs" : [{"_name" : "DELL U2722DE", "_spdisplays_display-serial-number" : "0"}],
      "spdisplays_vendor" : "sppci_vendor_Apple",
      "sppci_bus" : "spdisplays_builtin",
      "sppci_cores" : "18",
      "sppci_device_type" : "spdisplays_gpu",
      "sppci_model" : "Apple M3 Pro"
    }
  ]
}"""
SYSTEM_PROFILER_INTEL: Final = b"""{"SPDisplaysDataType" : [
  {"_name" : "Intel UHD Graphics 630", "spdisplays_vendor" : "Intel", "_spdisplays_vram" : "1536 MB",
   "sppci_bus" : "spdisplays_builtin", "sppci_model" : "Intel UHD Graphics 630"},
  "not a display",
  {"_name" : "AMD Radeon Pro 5500M", "spdisplays_vendor" : "sppci_vendor_amd", "spdisplays_vram" : "8 GB",
   "spdisplays_metal" : "spdisplays_supported", "sppci_model" : "AMD Radeon Pro 5500M"}
]}"""
XPU_SMI: Final = b"""{"device_list": [
  {"device_id": 0, "device_name": "Intel(R) Arc(TM) Pro B60 Graphics", "device_type": "GPU",
   "pci_bdf_address": "0000:97:00.0", "pci_device_id": "0xe211", "uuid": "00000000-0000-0097-0000-0000e2118086"}
]}"""
XPU_SMI_DETAILS: Final = b"""{"device_id": 0, "device_name": "Intel(R) Arc(TM) Pro B60 Graphics",
  "memory_free_size_byte": "25447604224", "memory_physical_size_byte": "25669140480",
  "pci_bdf_address": "0000:97:00.0", "serial_number": "unknown"}"""


class FakeMachine:
    """A machine below a folder: `plug` cards in, let tools `say` things, and read it as `machine`."""

    def __init__(self, root: Path, platform: str = "linux") -> None:
        self.root = root
        self.outputs: dict[tuple[str, ...], bytes | None] = {}
        self.libraries: dict[str, list[Card]] = {}
        self.raw_libraries: dict[str, bytes | None] = {}
        self.names: dict[str, str] = {}
        self.asked: list[tuple[str, ...]] = []
        self.environ: dict[str, str] = {}
        self.machine = Machine(
            root, platform, self._output_of, self._ask_library, lambda: dict(self.names), self.environ
        )

    def plug(
        self,
        slot: str,
        vendor: int,
        device: int,
        *,
        device_class: int = 0x030000,
        driver: str = "",
        files: Mapping[str, str | bytes] | None = None,
    ) -> Path:
        """Put a device on the bus; `files` are further ones in its folder."""
        folder = self.root / "sys/bus/pci/devices" / slot
        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "class": f"0x{device_class:06x}\n",
            "vendor": f"0x{vendor:04x}\n",
            "device": f"0x{device:04x}\n",
            "config": vendor.to_bytes(2, "little") + device.to_bytes(2, "little"),
            "power_state": "D0\n",
            **(files or {}),
        }
        for name, content in told.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        link = folder / "driver"
        link.unlink(missing_ok=True)
        if driver:
            link.symlink_to(f"../../../../bus/pci/drivers/{driver}")
        return folder

    def adapter(self, name: str, vendor: int, *states: str) -> None:
        """Put an RDMA adapter in, with a port for each state."""
        folder = self.root / "sys/class/infiniband" / name
        (folder / "device").mkdir(parents=True)
        (folder / "device" / "vendor").write_text(f"0x{vendor:04x}\n")
        for number, state in enumerate(states, 1):
            (folder / "ports" / str(number)).mkdir(parents=True)
            (folder / "ports" / str(number) / "state").write_text(f"{state}\n")

    def unplug(self, slot: str) -> None:
        """Take a device off the bus."""
        folder = self.root / "sys/bus/pci/devices" / slot
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        folder.rmdir()

    def say(self, command: Sequence[str], output: bytes | None) -> None:
        """Let a tool answer with this."""
        self.outputs[tuple(command)] = output

    def _output_of(self, command: Sequence[str]) -> bytes | None:
        self.asked.append(tuple(command))
        return self.outputs.get(tuple(command))

    def _ask_library(self, library: str) -> bytes | None:
        self.asked.append((library,))
        cards = self.libraries.get(library)
        return self.raw_libraries.get(library) if cards is None else msgspec.json.encode(cards)


def as_json(value: object) -> bytes:
    """What a tool with `--json` prints."""
    return json.dumps(value).encode()
