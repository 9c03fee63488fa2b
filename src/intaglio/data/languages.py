"""A passage in each language whose old code pages are told apart: what its letters and their neighbours look like."""

from __future__ import annotations

# Which code pages a language was written in, before UTF-8.
PAGES: dict[str, tuple[str, ...]] = {
    "russian": ("cp1251", "koi8-r", "cp866", "iso8859-5"),
    "ukrainian": ("cp1251", "koi8-u"),
    "bulgarian": ("cp1251",),
    "greek": ("cp1253", "iso8859-7"),
    "hebrew": ("cp1255",),
    "turkish": ("cp1254",),
    "polish": ("cp1250", "iso8859-2"),
    "czech": ("cp1250", "iso8859-2"),
    "hungarian": ("cp1250", "iso8859-2"),
    "romanian": ("cp1250", "iso8859-2"),
    **dict.fromkeys(("french", "german", "spanish", "portuguese", "italian", "swedish", "danish", "english"),
                    ("cp1252", "cp850", "mac-roman")),
}  # fmt: skip

ALPHABETS = {
    "russian": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
    "ukrainian": "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя",
    "bulgarian": "абвгдежзийклмнопрстуфхцчшщъьюя",
    "greek": "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ",
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשתךםןףץ",
    "turkish": "abcçdefgğhıijklmnoöprsştuüvyzâîû",
    "polish": "aąbcćdeęfghijklłmnńoóprsśtuwyzźż",
    "czech": "aábcčdďeéěfghiíjklmnňoópqrřsštťuúůvwxyýzž",
    "hungarian": "aábcdeéfghiíjklmnoóöőpqrstuúüűvwxyz",
    "romanian": "aăâbcdefghiîjklmnopqrsştţuvwxyz",
    "french": "abcdefghijklmnopqrstuvwxyzàâæçèéêëîïôœùûüÿ",
    "german": "abcdefghijklmnopqrstuvwxyzäöüß",
    "spanish": "abcdefghijklmnopqrstuvwxyzáéíñóúü",
    "portuguese": "abcdefghijklmnopqrstuvwxyzàáâãçéêíóôõú",
    "italian": "abcdefghijklmnopqrstuvwxyzàèéìòù",
    "swedish": "abcdefghijklmnopqrstuvwxyzåäöé",
    "danish": "abcdefghijklmnopqrstuvwxyzæøåé",
    "english": "abcdefghijklmnopqrstuvwxyzéèêïñöüç",
}

SAMPLES = {
    "russian": """
    Когда мы приехали в город, уже наступил вечер, и на улицах почти никого не было. Я долго стоял у окна и думал о том,
    что сказала мне сестра: нельзя всё время жить прошлым, надо идти вперёд, даже если этот путь очень трудный. Он
    ответил, что не знает, где искать другую работу, но обещал подумать и позвонить завтра утром. Дети играли во дворе,
    старый учитель читал газету, а в соседней комнате кто-то тихо пел. Весной здесь цветут яблони, летом бывает жарко,
    осенью идут дожди, зимой лежит снег. Мой друг хотел бы увидеть море и горы, услышать шум волн, почувствовать свежий
    ветер. Какие вещи вы возьмёте с собой? Только самые нужные: хлеб, воду, тёплую одежду и книгу. Если человек умеет
    слушать, то люди расскажут ему больше, чем они собирались. Поэтому каждый день она записывала всё, что происходило
    вокруг, чтобы потом вспомнить это и объяснить своим детям. Общество изменилось, появились новые возможности, однако
    главные вопросы остались прежними: как жить честно, во что верить, кого любить и ради чего работать. Моя душа
    просила покоя; твоих друзей я больше не встречал, и жизнь текла спокойно, без лишних слов и чужих советов.
    """,
    "ukrainian": """
    Коли ми приїхали до міста, вже настав вечір, і на вулицях майже нікого не було. Я довго стояв біля вікна та думав
    про те, що сказала мені сестра: не можна весь час жити минулим, треба йти вперед, навіть якщо цей шлях дуже важкий.
    Він відповів, що не знає, де шукати іншу роботу, але обіцяв подумати й подзвонити завтра вранці. Діти гралися у
    дворі, старий учитель читав газету, а в сусідній кімнаті хтось тихо співав. Її друзі є щирими людьми.
    """,
    "bulgarian": """
    Когато пристигнахме в града, вече беше вечер и по улиците нямаше почти никой. Дълго стоях до прозореца и мислех за
    това, което ми каза сестра ми: не може през цялото време да се живее в миналото, трябва да се върви напред, дори ако
    пътят е много труден. Той отговори, че не знае къде да търси друга работа, но обеща да помисли и да се обади утре
    сутринта. Децата играеха на двора, а старият учител четеше вестник.
    """,
    "greek": """
    Όταν φτάσαμε στην πόλη ήταν πια βράδυ και στους δρόμους δεν υπήρχε σχεδόν κανείς. Στεκόμουν πολλή ώρα στο παράθυρο
    και σκεφτόμουν αυτό που μου είπε η αδελφή μου: δεν μπορεί κανείς να ζει συνέχεια στο παρελθόν, πρέπει να προχωράει
    μπροστά, ακόμα και αν ο δρόμος είναι πολύ δύσκολος. Εκείνος απάντησε ότι δεν ξέρει πού να ψάξει για άλλη δουλειά,
    αλλά υποσχέθηκε να το σκεφτεί και να τηλεφωνήσει αύριο το πρωί. Τα παιδιά έπαιζαν στην αυλή, ο γέρος δάσκαλος διάβαζε
    την εφημερίδα του και στο διπλανό δωμάτιο κάποιος τραγουδούσε σιγά. Την άνοιξη ανθίζουν εδώ οι μηλιές.
    """,
    "hebrew": """
    כשהגענו לעיר כבר היה ערב וברחובות כמעט לא היה איש. עמדתי זמן רב ליד החלון וחשבתי על מה שאמרה לי אחותי: אי אפשר לחיות
    כל הזמן בעבר, צריך ללכת קדימה, גם אם הדרך הזאת קשה מאוד. הוא ענה שהוא לא יודע איפה לחפש עבודה אחרת, אבל הבטיח לחשוב
    ולהתקשר מחר בבוקר. הילדים שיחקו בחצר, המורה הזקן קרא עיתון, ובחדר הסמוך מישהו שר בשקט. באביב פורחים כאן עצי התפוח,
    בקיץ חם, בסתיו יורד גשם ובחורף יש שלג. אם אדם יודע להקשיב, אנשים יספרו לו יותר ממה שרצו.
    """,
    "turkish": """
    Şehre vardığımızda artık akşam olmuştu ve sokaklarda neredeyse hiç kimse yoktu. Uzun süre pencerenin önünde durdum ve
    kız kardeşimin bana söylediklerini düşündüm: insan hep geçmişte yaşayamaz, bu yol çok zor olsa bile ileriye doğru
    gitmek gerekir. O da başka bir işi nerede arayacağını bilmediğini söyledi, ama düşüneceğine ve yarın sabah
    arayacağına söz verdi. Çocuklar bahçede oynuyordu, yaşlı öğretmen gazete okuyordu. Dağların üstünde güneş ışığı vardı.
    """,
    "polish": """
    Kiedy przyjechaliśmy do miasta, był już wieczór i na ulicach prawie nikogo nie było. Długo stałem przy oknie i myślałem
    o tym, co powiedziała mi siostra: nie można cały czas żyć przeszłością, trzeba iść naprzód, nawet jeśli ta droga jest
    bardzo trudna. On odpowiedział, że nie wie, gdzie szukać innej pracy, ale obiecał się zastanowić i zadzwonić jutro rano.
    Dzieci bawiły się na podwórku, stary nauczyciel czytał gazetę, a w sąsiednim pokoju ktoś cicho śpiewał. Są też łzy.
    """,
    "czech": """
    Když jsme přijeli do města, byl už večer a na ulicích skoro nikdo nebyl. Dlouho jsem stál u okna a přemýšlel o tom, co
    mi řekla sestra: není možné žít pořád minulostí, je třeba jít dál, i když je ta cesta velmi těžká. Odpověděl, že neví,
    kde má hledat jinou práci, ale slíbil, že si to rozmyslí a zítra ráno zavolá. Děti si hrály na dvoře, starý učitel četl
    noviny a ve vedlejším pokoji někdo tiše zpíval. Žluté květy rostou kolem našeho domu, můj přítel chtěl vidět moře.
    """,
    "hungarian": """
    Amikor megérkeztünk a városba, már este volt, és az utcákon szinte senki sem járt. Sokáig álltam az ablaknál, és azon
    gondolkodtam, amit a nővérem mondott: nem lehet mindig a múltban élni, előre kell menni, még akkor is, ha ez az út
    nagyon nehéz. Azt felelte, hogy nem tudja, hol keressen más munkát, de megígérte, hogy gondolkodik rajta, és holnap
    reggel felhív. A gyerekek az udvaron játszottak, az öreg tanító újságot olvasott, a fűben virágok nőttek.
    """,
    "romanian": """
    Când am ajuns în oraş era deja seară şi pe străzi nu mai era aproape nimeni. Am stat mult timp la fereastră şi m-am
    gândit la ceea ce mi-a spus sora mea: nu se poate trăi tot timpul în trecut, trebuie să mergem înainte, chiar dacă
    drumul este foarte greu. El a răspuns că nu ştie unde să caute altă muncă, dar a promis că se va gândi şi va suna mâine
    dimineaţă. Copiii se jucau în curte, iar bătrânul învăţător citea ziarul.
    """,
    "french": """
    Quand nous sommes arrivés dans la ville, c'était déjà le soir et il n'y avait presque personne dans les rues. Je suis
    resté longtemps à la fenêtre et j'ai pensé à ce que m'avait dit ma sœur : on ne peut pas toujours vivre dans le passé,
    il faut aller de l'avant, même si ce chemin est très difficile. Il a répondu qu'il ne savait pas où chercher un autre
    travail, mais il a promis de réfléchir et d'appeler demain matin. Les enfants jouaient dans la cour, le vieux maître
    lisait son journal, et à côté quelqu'un chantait tout bas. Noël, ça coûte déjà plus cher ; l'été, où êtes-vous ?
    """,
    "german": """
    Als wir in der Stadt ankamen, war es schon Abend, und auf den Straßen war fast niemand mehr. Ich stand lange am Fenster
    und dachte über das nach, was mir meine Schwester gesagt hatte: Man kann nicht immer in der Vergangenheit leben, man muss
    vorwärts gehen, auch wenn dieser Weg sehr schwer für uns ist. Er antwortete, er wisse nicht, wo er eine andere Arbeit
    suchen könne, aber er versprach, darüber nachzudenken. Die Kinder spielten im Hof, größere Mädchen hörten schöne Lieder.
    """,
    "spanish": """
    Cuando llegamos a la ciudad ya era de noche y en las calles no había casi nadie. Estuve mucho tiempo junto a la ventana
    pensando en lo que me dijo mi hermana: no se puede vivir siempre en el pasado, hay que ir adelante, aunque este camino
    sea muy difícil. Él respondió que no sabía dónde buscar otro trabajo, pero prometió pensarlo y llamar mañana por la
    mañana. Los niños jugaban en el patio, el viejo maestro leía el periódico. ¿Qué más dirá según tú? El año próximo iré.
    """,
    "portuguese": """
    Quando chegamos à cidade já era noite e nas ruas não havia quase ninguém. Fiquei muito tempo à janela e pensei no que a
    minha irmã me disse: não se pode viver sempre no passado, é preciso ir em frente, mesmo que este caminho seja muito
    difícil. Ele respondeu que não sabia onde procurar outro trabalho, mas prometeu pensar e ligar amanhã de manhã. As
    crianças brincavam no pátio, o velho professor lia o jornal. Você também está à espera; nós pusemos as lições lá.
    """,
    "italian": """
    Quando siamo arrivati in città era già sera e per le strade non c'era quasi nessuno. Sono rimasto a lungo alla finestra
    e ho pensato a quello che mi aveva detto mia sorella: non si può vivere sempre nel passato, bisogna andare avanti, anche
    se questa strada è molto difficile. Lui rispose che non sapeva dove cercare un altro lavoro, ma promise di pensarci e
    di chiamare domani mattina. I bambini giocavano nel cortile, perché così è più bello; lunedì partirò.
    """,
    "swedish": """
    När vi kom fram till staden var det redan kväll och på gatorna fanns nästan ingen. Jag stod länge vid fönstret och
    tänkte på det som min syster hade sagt till mig: man kan inte alltid leva i det förflutna, man måste gå framåt, även om
    den här vägen är mycket svår. Han svarade att han inte visste var han skulle söka ett annat arbete, men han lovade att
    tänka på det och ringa i morgon. Barnen lekte på gården, den gamle läraren läste sin tidning.
    """,
    "danish": """
    Da vi kom til byen, var det allerede aften, og på gaderne var der næsten ingen. Jeg stod længe ved vinduet og tænkte på
    det, som min søster havde sagt til mig: man kan ikke altid leve i fortiden, man må gå fremad, også selv om denne vej er
    meget svær. Han svarede, at han ikke vidste, hvor han skulle søge et andet arbejde, men han lovede at tænke over det og
    ringe i morgen tidlig. Børnene legede i gården, den gamle lærer læste avis. Jeg er glad for å være her nå.
    """,
    "english": """
    When we came to the city it was already evening, and there was hardly anybody in the streets. I stood at the window for
    a long time and thought about what my sister had told me: one cannot always live in the past, one has to go on, even if
    this way is very hard. He answered that he did not know where to look for other work, but he promised to think about
    it and to call tomorrow morning. The children were playing outside, the old teacher read his text in a café.
    """,
}  # fmt: skip
