# The guest that is tried before a machine is run in hardware (see trial.py): it does what
# kernels do first and what half-working hardware virtualisation fails at.
# SPDX-License-Identifier: Apache-2.0
.code16
.globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    ljmp $0, $1f
1:  sti
    # three timer ticks, each waited for in hlt
    movw 0x46c, %bx
    addw $3, %bx
2:  hlt
    movw 0x46c, %ax
    subw %bx, %ax
    js 2b
    cli
    # page tables at 0x1000: one 2 MiB page, identity
    movl $0x1000, %edi
    movl %edi, %cr3
    xorl %eax, %eax
    movl $0x0c00, %ecx
    cld
    addr32 rep stosl
    movl $0x2003, 0x1000
    movl $0x3003, 0x2000
    movl $0x0083, 0x3000
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    lgdtl gdtr
    movl %cr0, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    ljmp $8, $long
.code64
long:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %ss
    movl $0x7000, %esp
    # some work: cpuid traps, memory, arithmetic
    movl $200, %r8d
3:  xorl %eax, %eax
    cpuid
    movl $50000, %ecx
4:  imulq $3, %rax
    pushq %rax
    popq %rbx
    decl %ecx
    jnz 4b
    decl %r8d
    jnz 3b
    movl $word, %esi
    movw $0x3f8, %dx
5:  lodsb
    testb %al, %al
    jz 6f
    outb %al, %dx
    jmp 5b
6:  movw $0xf4, %dx
    movl $0x10, %eax
    outl %eax, %dx
7:  hlt
    jmp 7b
word: .asciz "freezeframe"
.balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
gdtr:
    .word 23
    .long gdt
.org 510
.word 0xaa55
