"""Two guests with the real lvm2, lvmlockd, device-mapper and wdmd share a VG: over Holdfast in sanlock's place, over the
real sanlock, or with one of each.
"""
