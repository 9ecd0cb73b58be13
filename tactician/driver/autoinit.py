"""``import tactician.driver.autoinit``: makes a device and context current, as pycuda's does."""

from . import Context, Device, init

init()
device: Device = Device(0)
context: Context = device.make_context()
