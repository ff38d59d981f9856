"""Makes ../classes.bin: what tokenizers 0.22.2 (with the libraries it links) takes each code point for. Run from this folder; the
argument is src/tables.rs of unicode-segmentation 1.12, whose grapheme classes Precompiled uses.

    python classes.py tables.rs
"""
import re,sys
from tokenizers import pre_tokenizers as P, Regex, normalizers as N
cps=[c for c in range(0x110000) if not 0xd800<=c<0xe000]
mask=[0]*0x110000
def removed(bit,pt):
    for k in range(0,len(cps),8192):
        ch=cps[k:k+8192]; keep=set()
        for _,(a,b) in pt.pre_tokenize_str(''.join(map(chr,ch))): keep.update(range(a,b))
        for i,c in enumerate(ch):
            if i not in keep: mask[c]|=1<<bit
for bit,rx in enumerate([r'\p{Lu}',r'\p{Ll}',r'\p{Lt}',r'\p{Lm}',r'\p{Lo}',r'\p{N}',r'\p{M}',r'\p{P}',r'\p{S}',r'\s']):
    removed(bit,P.Split(Regex(rx),'removed'))
removed(10,P.Punctuation('removed'))
dig,ws,sa=P.Digits(individual_digits=True),P.Whitespace(),N.StripAccents()
nfd,nfkd=N.NFD(),N.NFKD()
for c in cps:
    s=chr(c)
    if len(dig.pre_tokenize_str('a'+s+'a'))==3: mask[c]|=1<<11
    if len(ws.pre_tokenize_str('a'+s+'a'))==1: mask[c]|=1<<12
    if sa.normalize_str(s)=='': mask[c]|=1<<13
    if nfd.normalize_str(s)!=s: mask[c]|=1<<14
    if nfkd.normalize_str(s)!=s: mask[c]|=1<<15
names=['GC_CR','GC_LF','GC_Control','GC_Extend','GC_L','GC_V','GC_T','GC_LV','GC_LVT','GC_Regional_Indicator','GC_SpacingMark','GC_ZWJ','GC_Prepend','GC_Extended_Pictographic']
table=open(sys.argv[1]).read().split('grapheme_cat_table')[-1]
seen=set()
for a,b,n in re.findall(r"\('\\u\{([0-9a-f]+)\}',\s*'\\u\{([0-9a-f]+)\}',\s*(GC_\w+)\)",table):
    seen.add(n)
    if n in names:
        for c in range(int(a,16),int(b,16)+1): mask[c]|=(names.index(n)+1)<<16
assert 'GC_Extend' in seen, seen
mask[13]|=1<<16; mask[10]|=2<<16
print(sorted(seen-set(names)))
def varint(n):
    out=b''
    while n>127: out+=bytes([n&127|128]); n>>=7
    return out+bytes([n])
out=b''; start=0; kinds=[]
for c in range(1,0x110001):
    if c==0x110000 or mask[c]!=mask[start]:
        m=mask[start]
        if m not in kinds: kinds.append(m)
        out+=varint(c-start)+varint(kinds.index(m)); start=c
open('../classes.bin','wb').write(varint(len(kinds))+b''.join(map(varint,kinds))+out)
print(len(kinds),len(out))
