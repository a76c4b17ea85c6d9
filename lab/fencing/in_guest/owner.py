"""An owner, as a virtual machine is one: writes its host's sector of the disk, all the time.

owner.py DISK HOST_ID SECTOR_BYTES PID_FILE
"""

import mmap
import os
import sys
import time

WRITE_EVERY_S = 0.1

disk, host_id, sector_bytes, pid_file = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with open(pid_file, "w") as file:
    file.write(str(os.getpid()))
buffer = mmap.mmap(-1, sector_bytes)
fd = os.open(disk, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
while True:
    buffer.seek(0)
    buffer.write(f"{os.getpid()} {time.time():.6f}".encode().ljust(64))
    os.pwritev(fd, [buffer], host_id * sector_bytes)
    time.sleep(WRITE_EVERY_S)
