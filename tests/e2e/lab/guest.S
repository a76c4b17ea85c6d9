# The boot sector of the lab's guests; there is no operating system.
#
# Sector 1 of the boot disk holds a record: the word "LHB2", a counter, and the number of boots.  The guest adds
# one to the boots when it starts and one to the counter 18 times a second, and writes the record each time:
# a growing counter proves that the guest runs and writes, a grown number of boots proves a reboot.
# Each round also rewrites 512 KiB of memory, so that a live migration held to 1 MiB/s never converges.
#
# Between rounds it halts (little load under emulation) and looks at the ACPI power button; when pressed, it
# powers itself off as an operating system would.  So `virsh shutdown` and `virsh reboot` work on it.
# The firmware of the "pc" machine puts the ACPI power management registers at port 0x600.
    .code16
    .set PM1_STATUS, 0x600
    .set PM1_ENABLE, 0x602
    .set PM1_CONTROL, 0x604
    .set POWER_BUTTON, 0x100
    .set SLEEP_ENABLE_S5, 0x2000
    .set RECORD, 0x7e00
    .set MAGIC, 0x3242484c
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7c00, %sp
    cld
    sti
    movb %dl, drive
    movw $0x4200, %ax               # read the record
    movw $packet, %si
    int  $0x13
    cmpl $MAGIC, RECORD
    je   booted
    movl $MAGIC, RECORD
    xorl %eax, %eax
    movl %eax, RECORD+4
    movl %eax, RECORD+8
booted:
    incl RECORD+8
    movw $PM1_ENABLE, %dx
    movw $POWER_BUTTON, %ax
    outw %ax, %dx
round:
    incl RECORD+4
    movw $packet, %si
    movb drive, %dl
    movw $0x4300, %ax               # write the record
    int  $0x13
    movw $0x1000, %bx               # segments 0x1000..0x8fff, 64 KiB each
fill:
    movw %bx, %es
    xorw %di, %di
    movl RECORD+4, %eax
    movw $0x4000, %cx
    rep stosl
    addw $0x1000, %bx
    cmpw $0x9000, %bx
    jb   fill
    hlt                             # until the next tick of the timer
    movw $PM1_STATUS, %dx
    inw  %dx, %ax
    testb $1, %ah                   # POWER_BUTTON >> 8
    jz   round
    outw %ax, %dx                   # acknowledge
    movw $PM1_CONTROL, %dx
    movw $SLEEP_ENABLE_S5, %ax
    outw %ax, %dx
off:
    hlt
    jmp  off
packet: .byte 0x10, 0
        .word 1, RECORD, 0
        .long 1, 0
drive:  .byte 0
    .org 510
    .word 0xaa55
