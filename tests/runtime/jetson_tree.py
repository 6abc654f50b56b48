"""Write a tree of system files like those of a Jetson Orin Nano."""

from pathlib import Path

POWER_MODES = "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=7W >\n"
CHANNELS = {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 5000, 400), 3: ("NC", 5000, 8)}  # label, mV, mA


def write_jetson(root: Path) -> Path:
    """Write the tree and return its root."""
    files = {
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "var/lib/nvpmodel/status": "pmode:0001\nfmode:quiet\n",
        "etc/nvpmodel.conf": POWER_MODES,
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1510400\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
        "sys/class/devfreq/15340000.vic/cur_freq": "435200000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48500\n",
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "47000\n",
        "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",  # its temp cannot be read while it is off
        "sys/class/hwmon/hwmon0/name": "pwmfan\n",
        "sys/class/hwmon/hwmon0/in1_label": "not a rail\n",
        "sys/class/hwmon/hwmon1/name": "ina3221\n",
        "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages\n",
    }
    for channel, (label, millivolts, milliamperes) in CHANNELS.items():
        monitor = "sys/class/hwmon/hwmon1"
        files[f"{monitor}/in{channel}_label"] = f"{label}\n"
        files[f"{monitor}/in{channel}_input"] = f"{millivolts}\n"
        files[f"{monitor}/curr{channel}_input"] = f"{milliamperes}\n"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root
