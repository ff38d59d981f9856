"""Makes components.json: hashes of what tokenizers 0.22.2 does with generated texts (see fuzz.py) for settings that the golden tokenizers do
not have. Each line has a golden tokenizer, what replaces its parts, and a hash per block of 100 texts.

    python components.py GOLDEN_DIR              # writes components.json
    python components.py GOLDEN_DIR LINE BLOCK   # prints the results of one block
"""
import hashlib,json,os,sys
argv=sys.argv; sys.argv=[argv[0],argv[1],'','']
src=open('fuzz.py').read().split("golden=sys.argv[1]")[0]
exec(src)
golden=argv[1]
R=lambda s:{"Regex":s}
S=lambda s:{"String":s}
def split(p,b,i=False): return {"type":"Split","pattern":p,"behavior":b,"invert":i}
bl={"type":"ByteLevel","add_prefix_space":False,"trim_offsets":True,"use_regex":False}
def pre(*l): return {"type":"Sequence","pretokenizers":list(l)}
def norm(*l): return {"type":"Sequence","normalizers":list(l)}
def dec(*l): return {"type":"Sequence","decoders":list(l)}
o200k=r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
tekken=r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
gpt2=r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
bloom=r" ?[^(\s|[.,!?…。，、।۔،])]+"
meta=lambda s,c=True:{"type":"Metaspace","replacement":"▁","prepend_scheme":s,"split":c}
lines=[
 ("bpe-gpt2",{"pre_tokenizer":pre(split(R(o200k),"Isolated"),bl)}),
 ("bpe-gpt2",{"pre_tokenizer":pre(split(R(o200k),"Removed",True),bl)}),
 ("bpe-gpt2",{"pre_tokenizer":pre(split(R(tekken),"Isolated"),bl)}),
 ("bpe-gpt2",{"pre_tokenizer":pre(split(R(gpt2),"Isolated"),bl)}),
 ("bpe-gpt2",{"pre_tokenizer":pre(split(R(bloom),"Isolated"),bl)}),
 ("bpe-gpt2",{"pre_tokenizer":pre({"type":"Punctuation","behavior":"Contiguous"},{"type":"ByteLevel","add_prefix_space":False,"trim_offsets":True},{"type":"Digits","individual_digits":False},split(R("[0-9][0-9][0-9]"),"Isolated"))}),
 ("bpe-gpt2",{"pre_tokenizer":pre({"type":"Punctuation","behavior":"Contiguous"},{"type":"Digits","individual_digits":False},split(R("[0-9][0-9][0-9]"),"Isolated"),{"type":"ByteLevel","add_prefix_space":True,"trim_offsets":True})}),
 ("bpe-gpt2",{"pre_tokenizer":pre({"type":"Digits","individual_digits":True},{"type":"ByteLevel","add_prefix_space":False,"trim_offsets":True}),"post_processor":{"type":"ByteLevel","add_prefix_space":False,"trim_offsets":True,"use_regex":True}}),
 ("bpe-roberta",{"post_processor":{"type":"Sequence","processors":[{"type":"ByteLevel","add_prefix_space":False,"trim_offsets":True},{"type":"BertProcessing","sep":["</s>",2],"cls":["<s>",0]}]}}),
 ("bpe-roberta",{"normalizer":norm({"type":"NFKC"},{"type":"Strip","strip_left":True,"strip_right":True},{"type":"Prepend","prepend":"ab"})}),
 ("bpe-roberta",{"normalizer":norm({"type":"Nmt"},{"type":"NFKD"},{"type":"StripAccents"},{"type":"NFC"})}),
 ("bpe-roberta",{"normalizer":norm({"type":"NFC"},{"type":"Replace","pattern":R(" {2,}"),"content":"_x"},{"type":"Lowercase"},{"type":"Replace","pattern":S("a"),"content":""})}),
 ("bpe-clip",{"pre_tokenizer":pre({"type":"WhitespaceSplit"},bl)}),
 ("bpe-clip",{"pre_tokenizer":pre({"type":"FixedLength","length":3},bl)}),
]+[("wordpiece-cased",{"truncation":None,"padding":None,"pre_tokenizer":p}) for p in [
 split(S("e"),"Removed"),split(S("e"),"Isolated"),split(S("e"),"MergedWithPrevious"),split(S("e"),"MergedWithNext"),split(S("e"),"Contiguous"),
 split(S("e"),"Removed",True),split(S("e"),"MergedWithPrevious",True),split(S("e"),"MergedWithNext",True),
 {"type":"Punctuation","behavior":"MergedWithNext"},{"type":"Punctuation","behavior":"MergedWithPrevious"},{"type":"Punctuation","behavior":"Removed"},
 {"type":"CharDelimiterSplit","delimiter":" "},{"type":"Whitespace"},pre({"type":"WhitespaceSplit"},{"type":"Digits","individual_digits":False}),None]]+[
 ("unigram-xlmr",{"pre_tokenizer":meta("first")}),("unigram-xlmr",{"pre_tokenizer":meta("never"),"decoder":meta("never")}),
 ("unigram-xlmr",{"pre_tokenizer":meta("always",False)}),("unigram-xlmr",{"pre_tokenizer":None,"decoder":dec({"type":"Strip","content":"▁","start":2,"stop":0},{"type":"Fuse"})}),
 ("unigram-xlmr",{"normalizer":{"type":"NFKC"},"pre_tokenizer":pre(meta("first"),{"type":"Punctuation","behavior":"Isolated"})}),
 ("unigram-xlmr",{"normalizer":None,"pre_tokenizer":pre({"type":"Whitespace"},meta("always"))}),
 ("unigram-bytes",{"normalizer":norm({"type":"Nmt"},{"type":"NFKC"},{"type":"Replace","pattern":R(r"\s+"),"content":" "},{"type":"Strip","strip_left":False,"strip_right":True})}),
 ("bpe-llama2",{"pre_tokenizer":meta("always"),"normalizer":None}),
 ("bpe-llama2",{"decoder":{"type":"BPEDecoder","suffix":"e"}}),
 ("wordlevel",{"decoder":{"type":"CTC","pad_token":"e","word_delimiter_token":"a","cleanup":True}}),
 ("wordlevel",{"normalizer":{"type":"NFD"},"pre_tokenizer":{"type":"BertPreTokenizer"},"decoder":{"type":"CTC","pad_token":"<s>","word_delimiter_token":"a","cleanup":False}}),
]
BLOCKS=3
def load(i):
    name,patch=lines[i]
    j=json.load(open(os.path.join(golden,'tokenizers',name,'tokenizer.json'))); j.update(patch)
    return Tokenizer.from_str(json.dumps(j))
def block(i,b,t):
    r=Rand(1000003*b+7919*i+1); rows=[]
    for k in range(100):
        texts=[text(r)]
        if k%10==9: texts.append(text(r))
        try: rows.append((texts,result(t,texts)))
        except Exception as e: rows.append((texts,'error\n'))
    return rows
if len(argv)>3:
    i=int(argv[2])
    for texts,res in block(i,int(argv[3]),load(i)): print(json.dumps([texts,res]))
else:
    out=open('components.json','w')
    for i,(name,patch) in enumerate(lines):
        try: t=load(i)
        except Exception as e: print('line',i,e); continue
        h=' '.join(hashlib.sha256(''.join(r for _,r in block(i,b,t)).encode('utf8')).hexdigest()[:8] for b in range(BLOCKS))
        print(json.dumps({"line":i,"name":name,"patch":patch,"hashes":h}),file=out)
